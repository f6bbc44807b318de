"""poise in TRL: `PoiseTrainer` is a `GRPOTrainer` whose baseline is read from the policy's own hidden states.

TRL is subclassed, never patched or copied. What is relied on of its private methods stands in `contract.py`, and is
checked here: a release that changed it is met with one sentence.
"""

from poise.extras import required_extra

with required_extra("trl", "poise.engines.trl"):
    from poise.engines.trl import contract

    contract.check()

    from poise.engines.trl.config import PoiseConfig
    from poise.engines.trl.trainer import PoiseTrainer

__all__ = ["PoiseConfig", "PoiseTrainer"]
