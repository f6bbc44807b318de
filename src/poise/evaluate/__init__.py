"""How often a policy is right on problems that it was not trained on.

Completions are sampled as in training. Sampling has a random state of its own, so that measuring a policy in
the middle of its training does not change what the training does.
"""

from poise.evaluate.held_out import HeldOutAccuracy, accuracy_of_rewards
from poise.evaluate.pass_at_k import pass_at_k
from poise.evaluate.sampling import SampledCompletion, Sampling, measured_completions, sampled_completions

__all__ = [
    "HeldOutAccuracy",
    "SampledCompletion",
    "Sampling",
    "accuracy_of_rewards",
    "measured_completions",
    "pass_at_k",
    "sampled_completions",
]
