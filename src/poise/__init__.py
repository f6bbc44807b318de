"""poise: reinforcement learning with verifiable rewards, its baseline read from the policy's own hidden states.

The names below are imported when they are first asked for, so that `poise --help` need not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poise.baselines import Step
    from poise.features.hidden_states import capture_hidden_states
    from poise.features.rollout_features import Features, reasoning_mask, score_norm_weights, token_entropies
    from poise.loops import advantages
    from poise.online import OnlineBaseline
    from poise.presets import PRESETS, Preset, preset

__all__ = [
    "PRESETS",
    "Features",
    "OnlineBaseline",
    "Preset",
    "Step",
    "advantages",
    "capture_hidden_states",
    "preset",
    "reasoning_mask",
    "score_norm_weights",
    "token_entropies",
]
MODULES = (
    "poise.features.hidden_states",
    "poise.features.rollout_features",
    "poise.baselines",
    "poise.online",
    "poise.loops",
    "poise.presets",
)


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in map(import_module, MODULES):
            if hasattr(module, name):
                globals()[name] = getattr(module, name)
                return globals()[name]
    raise AttributeError(f"module 'poise' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
