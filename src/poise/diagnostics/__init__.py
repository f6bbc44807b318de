"""Measurements of baselines: from pairs of rollouts, and from gradients of frozen rollouts."""
