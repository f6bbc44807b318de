"""poise: reinforcement learning with verifiable rewards, its baseline read from the policy's own hidden states."""

from poise.baselines import Step
from poise.features.hidden_states import capture_hidden_states
from poise.features.rollout_features import Features, reasoning_mask, score_norm_weights, token_entropies
from poise.online import OnlineBaseline
from poise.presets import PRESETS, Preset, preset

__all__ = [
    "PRESETS",
    "Features",
    "OnlineBaseline",
    "Preset",
    "Step",
    "capture_hidden_states",
    "preset",
    "reasoning_mask",
    "score_norm_weights",
    "token_entropies",
]
