"""The study: value estimates of a policy's prompts, fitted on training prompts and judged on held-out ones.

The reward of a rollout that judges an estimate never enters it.
"""
