"""How noisy is an arm's gradient at this moment of its training, and does its mean point where it should?

The rule: advantages are the arm's own, made by its own trainer from fresh rollouts of prompts that are always the same;
then everything is put back, so that training goes on as if nothing had been measured. An arm's gradient is that of its
loss at the first minibatch:

    g_x = mean_i A_i / c_i grad log pi(y_i | x),   c_i = the completion's length where the loss divides by it, else 1

Its variance is that of a step, whatever the group size: tr Cov of the mean over as many prompts as a generation batch
holds. Noise to signal, tr Cov / ||E g||^2, does not depend on the unit of advantages.

Bias: the gradient of E[r] has advantages r. So E[(A - r) grad log pi] is zero for every unbiased arm without a scale of
its own, and the squared norm of this mean is estimated without bias like that of any other mean gradient.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from poise.diagnostics.gradient_variance import PromptGradients
from poise.engines.trl import PoiseTrainer
from poise.engines.trl.config import LOSS_NORMALIZATION
from poise.lab.compare.trainers import DynamicSamplingTrainer, Tallied

_LEAST_PROMPTS = 3  # of a jackknife


def gradient_noise(
    trainer: Tallied, rows: Sequence[dict[str, Any]], *, batch_rollouts: int, seed: int
) -> dict[str, float]:
    """Variance and squared signal of a step's gradient, and the squared bias of arms that do not scale advantages.

    Args:
        trainer: Of the arm, in the middle of its training.
        rows: Of its data set, one a prompt.
        batch_rollouts: That a step trains on.
        seed: Of the rollouts that are drawn for this.

    Returns:
        `gradient/trace`, `gradient/signal`, `gradient/bias`, each with its standard error under the same name and
        `_error`, and `gradient/prompts`. NaN where fewer than three prompts have a gradient.
    """
    size = trainer.num_generations
    a_batch = max(1, batch_rollouts // size)
    gradients, deviations = [], []
    with _as_it_was(trainer, seed=seed):
        for first in range(0, len(rows), a_batch):
            scored, differences = _scored(trainer, rows[first : first + a_batch])
            lengths = scored["completion_mask"].sum(dim=1)
            by_length = LOSS_NORMALIZATION[trainer.args.loss_type] == "sequence"
            divisors = size * (lengths if by_length else torch.ones_like(lengths))
            gradients.append(prompt_gradient_rows(trainer, scored, scored["advantages"] / divisors, size))
            if differences is not None:
                deviations.append(prompt_gradient_rows(trainer, scored, differences / divisors, size))
    found = torch.cat(gradients)
    if isinstance(trainer, DynamicSamplingTrainer):  # groups without a signal would have been drawn again
        found = found[found.abs().amax(dim=1) > 0]
    nothing = {"gradient/prompts": float(len(found))}
    if len(found) < _LEAST_PROMPTS:
        return nothing | {f"gradient/{name}": torch.nan for name in ("trace", "signal")}
    products = PromptGradients((found @ found.T).double())
    trace, signal = products.trace_covariance().times(len(found) / a_batch), products.squared_signal()
    measured = nothing | {
        "gradient/trace": trace.value,
        "gradient/trace_error": trace.standard_error,
        "gradient/signal": signal.value,
        "gradient/signal_error": signal.standard_error,
    }
    if deviations:
        apart = torch.cat(deviations)
        bias = PromptGradients((apart @ apart.T).double()).squared_signal()
        measured |= {"gradient/bias": bias.value, "gradient/bias_error": bias.standard_error}
    return measured


def prompt_gradient_rows(
    trainer: Tallied, scored: dict[str, Tensor], coefficients: Float[Tensor, " rows"], group_size: int
) -> Float[Tensor, "prompts parameters"]:
    """For each group, the gradient of the sum of its completions' log-probabilities, each times its coefficient."""
    model = trainer.model
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.empty(len(coefficients) // group_size, sum(p.numel() for p in parameters))
    for prompt, first in enumerate(range(0, len(coefficients), group_size)):
        group = slice(first, first + group_size)
        prompt_mask, completion_mask = scored["prompt_mask"][group], scored["completion_mask"][group]
        # Columns that are padding in the whole group cost time and say nothing.
        prompt_kept, completion_kept = prompt_mask.any(dim=0), completion_mask.any(dim=0)
        completion_mask = completion_mask[:, completion_kept]
        ids = [scored["prompt_ids"][group][:, prompt_kept], scored["completion_ids"][group][:, completion_kept]]
        logprobs, *_ = trainer._get_per_token_logps_and_entropies(
            model,
            torch.cat(ids, dim=1),
            torch.cat([prompt_mask[:, prompt_kept], completion_mask], dim=1),
            completion_mask.shape[1],
        )
        total = (coefficients[group, None] * logprobs * completion_mask).sum()
        parts = torch.autograd.grad(total, parameters, materialize_grads=True)
        found[prompt] = torch.cat([part.flatten() for part in parts]).cpu()
    return found


def _scored(trainer: Tallied, rows: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], Tensor | None]:
    """A generation batch of these prompts; advantages minus rewards where advantages have the unit of rewards."""
    inputs = [dict(row) for row in rows for _ in range(trainer.num_generations)]
    scored = trainer._generate_and_score_completions(inputs)
    if not isinstance(trainer, PoiseTrainer):
        return scored, None
    assert trainer.last_rollouts is not None
    rewards = torch.tensor(trainer.last_rollouts["rewards"], dtype=torch.float32).to(scored["advantages"])
    return scored, torch.where(rewards.isnan(), 0.0, scored["advantages"] - rewards)


@contextmanager
def _as_it_was(trainer: Tallied, *, seed: int) -> Iterator[None]:
    """Draw from another seed inside, and put back whatever a generation batch changes."""
    kept = {
        name: getattr(trainer, name)
        for name in ("tally", "baseline", "critic", "last_rollouts", "last_step", "resampling", "_metrics", "_logs")
        if hasattr(trainer, name)
    }
    shared: dict[int, Any] = {}  # a critic is a baseline, too, and stays one object
    for name in ("baseline", "critic", "_metrics", "_logs"):
        if name in kept:
            setattr(trainer, name, copy.deepcopy(kept[name], shared))
    trainer.tally = replace(trainer.tally)
    if isinstance(trainer, DynamicSamplingTrainer):
        trainer.resampling = False
    tokens_seen = trainer.state.num_input_tokens_seen
    device = trainer.accelerator.device
    was_training = trainer.model.training
    trainer.model.train()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield
    finally:
        trainer.model.train(was_training)
        trainer.state.num_input_tokens_seen = tokens_seen
        for name, value in kept.items():
            setattr(trainer, name, value)
