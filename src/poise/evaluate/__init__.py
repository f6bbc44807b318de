"""How often is a policy right on problems that it was not trained on?

The rule: one completion a problem, sampled as in training. Sampling has a random state of its own, so that measuring
a policy in the middle of its training does not change what the training does.
"""

from poise.evaluate.held_out import HeldOutAccuracy, held_out_accuracy
from poise.evaluate.sampling import Sampling, sampled_completions

__all__ = ["HeldOutAccuracy", "Sampling", "held_out_accuracy", "sampled_completions"]
