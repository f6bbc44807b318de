"""Critics of the policy's size, fine-tuned on the pairs that probes are fitted on, and their estimates.

A critic gets its best chance: learning rate and epoch are chosen on training prompts that it was not trained on, and
only the fit that is chosen counts as its cost. Its estimates are kept in a file, for they are dear.
"""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from poise.baselines import sibling_means
from poise.lab.critic import SequenceCritic
from poise.lab.progress import Watch, silent
from poise.lab.study.estimators import Estimates
from poise.lab.study.rollouts import StudyRollouts
from poise.lab.study.settings import PAIR
from poise.storage.whole_files import written_whole

KINDS = {"prompt-only critic": False, "trajectory critic": True}
"""By name, whether it reads a rollout and is used across rollouts, or reads the prompt alone."""


@dataclass(frozen=True)
class CriticFitting:
    """How critics are fitted."""

    epochs: int
    """At most."""
    learning_rates: tuple[float, ...]
    """To try; the one with the lowest squared error on held-back training prompts counts."""
    batch_size: int = 16
    held_back: float = 0.15
    """Share of the training prompts that choose rate and epoch."""
    seed: int = 0
    hindsight: bool = False
    """Whether to take down what every epoch of every rate says of the held-out prompts."""


def fit_critics(
    folder: Path,
    policy: nn.Module,
    training: StudyRollouts,
    held_out: StudyRollouts,
    *,
    fitting: CriticFitting,
    watch: Watch = silent,
) -> dict[str, Estimates]:
    """What both kinds of critics say; from the folder, if one fitted in the same way has said it before.

    Args:
        folder: Of this task and this policy.
        policy, training, held_out, fitting: See `fit_critic`.
        watch: Told the critic's name, batches done and batches at most to do.
    """
    folder.mkdir(exist_ok=True)
    made_with = json.loads(json.dumps(dataclasses.asdict(fitting)))
    del made_with["hindsight"]  # takes no part in the fit
    made_with["chosen_by"] = "squared error"
    critics = {}
    for name in KINDS:
        file = folder / f"{name.split()[0]}.safetensors"
        known = _read(file, made_with)
        if known is None or (fitting.hindsight and known.each_epoch is None):
            known = fit_critic(policy, training, held_out, name=name, fitting=fitting, watch=watch)
            _write(file, known, made_with)
        critics[name] = known
    return critics


def fit_critic(
    policy: nn.Module,
    training: StudyRollouts,
    held_out: StudyRollouts,
    *,
    name: str,
    fitting: CriticFitting,
    watch: Watch = silent,
) -> Estimates:
    """What a critic of the policy's size says, fine-tuned on the training pairs.

    Args:
        policy: Is copied.
        training: Of each prompt the first two draws are the pair.
        held_out: Each draw with features is evidence in turn.
        name: Of `KINDS`.
        fitting: How.
        watch: Told batches done and at most to do, over all learning rates.
    """
    reads_completion = KINDS[name]
    rewards = training.rewards[:, :PAIR]
    groups = torch.arange(len(training))
    targets = rewards.mean(dim=1)
    if reads_completion:
        groups = groups.repeat_interleave(PAIR)
        graded = torch.ones(rewards.numel(), dtype=torch.bool)
        targets = sibling_means(rewards.reshape(-1, 1), groups, graded)[0][:, 0]
    sequences = _sequences(training, PAIR if reads_completion else 0)
    rate = float(targets.mean().clamp(0.01, 0.99))
    num = held_out.featured
    asked = _sequences(held_out, num if reads_completion else 0)

    def said(critic: SequenceCritic) -> Float[Tensor, "prompts evidence"]:
        values = critic.values(asked)
        return values.unflatten(0, (-1, num)) if reads_completion else values[:, None].repeat(1, num)

    each_epoch: list[Tensor] = []

    def take_down(critic: SequenceCritic) -> None:
        if fitting.hindsight:
            each_epoch.append(said(critic))

    fits = []
    for tried, learning_rate in enumerate(fitting.learning_rates):
        critic = SequenceCritic(policy, mean_rate=rate)
        fit = critic.fit(
            sequences,
            targets,
            epochs=fitting.epochs,
            learning_rate=learning_rate,
            batch_size=fitting.batch_size,
            seed=fitting.seed,
            groups=groups,
            held_back=fitting.held_back,
            watch=_part_of(watch, name, tried, len(fitting.learning_rates)),
            after_epoch=take_down,
        )
        fits.append((min(fit.held_back_errors), learning_rate, critic, fit))
        fits = [min(fits, key=lambda each: each[0])]  # one critic at a time is enough to hold
    [(error, learning_rate, critic, fit)] = fits
    rates = ", ".join(f"{each:g}" for each in fitting.learning_rates)
    chosen = (
        f"learning rate {learning_rate:g} of {rates}, {fit.held_back_errors.index(error)} of at most {fitting.epochs} "
        f"epochs, squared error {error:.4f} on held-back prompts ({fit.held_back_errors[0]:.4f} untrained)"
    )
    return Estimates(
        said(critic),
        fit.seconds,
        fit.cpu_seconds,
        fit.extra_bytes,
        chosen=chosen,
        each_epoch=torch.stack(each_epoch) if each_epoch else None,
    )


def _sequences(rollouts: StudyRollouts, draws: int) -> list[list[int]]:
    """Prompts alone, or prompts with their first so many completions."""
    if not draws:
        return rollouts.prompt_ids
    pairs = zip(rollouts.prompt_ids, rollouts.completion_ids, strict=True)
    return [prompt + completion for prompt, completions in pairs for completion in completions[:draws]]


def _part_of(watch: Watch, name: str, part: int, num_parts: int) -> Callable[[int, int], None]:
    """What is told of one of several equal parts, told as of all."""
    return lambda done, total: watch(name, part * total + done, num_parts * total)


_TOLD = ("seconds", "cpu_seconds", "extra_bytes", "chosen")
_TENSORS = ("values", "each_epoch")


def _read(file: Path, made_with: dict[str, object]) -> Estimates | None:
    """What a file holds; None if there is none, or it was made otherwise."""
    try:
        with safe_open(file, framework="pt") as opened:
            told = json.loads(opened.metadata()["poise_critic"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return Estimates(**tensors, **{name: told[name] for name in _TOLD}) if told["made_with"] == made_with else None
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def _write(file: Path, estimates: Estimates, made_with: dict[str, object]) -> None:
    told = {"made_with": made_with} | {name: getattr(estimates, name) for name in _TOLD}
    tensors = {name: getattr(estimates, name) for name in _TENSORS}
    with written_whole(file) as place:
        kept = {name: each.contiguous() for name, each in tensors.items() if each is not None}
        save_file(kept, place, metadata={"poise_critic": json.dumps(told)})
