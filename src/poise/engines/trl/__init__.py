"""poise in TRL: `PoiseTrainer` is a `GRPOTrainer` whose baseline is read from the policy's own hidden states.

TRL is subclassed, never patched or copied. Four of the six methods overridden in `trainer.py` are private to TRL, so
the tested releases are named here and any other one is met with a warning.
"""

import warnings
from importlib.metadata import version

from poise.extras import required_extra

with required_extra("trl", "poise.engines.trl"):
    from packaging.version import Version

    from poise.engines.trl.config import PoiseConfig
    from poise.engines.trl.trainer import PoiseTrainer

__all__ = ["PoiseConfig", "PoiseTrainer"]

TESTED_RELEASES = ((1, 15), (1, 16))


def untested_release_warning(trl_version: str) -> str | None:
    """Say in one sentence that a TRL release is outside the tested range; `None` if it is inside."""
    if Version(trl_version).release[:2] in TESTED_RELEASES:
        return None
    return (
        f"poise is tested with trl>=1.15,<1.17 and found trl {trl_version}: "
        "run `pytest tests/engines/test_trl_contract.py` before trusting its baselines"
    )


_message = untested_release_warning(version("trl"))
if _message is not None:
    warnings.warn(_message, UserWarning, stacklevel=2)
