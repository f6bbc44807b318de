"""Adapters to training frameworks: each hands features, rewards, prompts and domains over and takes baselines back.

Nothing of the method lives here. A new baseline touches no engine.
"""
