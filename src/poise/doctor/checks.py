"""Checks of a run's settings, model and machine for what would bias it, waste it or end it.

A check is a pure function, so that it can be seen to fire and not to fire. "fail" is what makes a run wrong, "warn"
what makes it worse.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from packaging.requirements import Requirement
from torch import Tensor, nn

from poise.diagnostics.row_isolation import RowIsolation
from poise.models.generation import CHANGING, TRUNCATING, changing_options
from poise.models.named import NOTHING_TRAINABLE

LARGEST_GAP = 0.005
"""Nats a token between sampler and trainer; from twice that on the sampler is another policy."""
SMALLEST_SHARE_MOVED = 0.1
"""Of bf16 weights, the share that one update must be able to change."""


@dataclass(frozen=True)
class Finding:
    """What a check found: its name, "ok", "warn" or "fail", and a sentence."""

    check: str
    level: str
    sentence: str


def trainable_finding(model: nn.Module) -> Finding:
    """Whether there is anything to train."""
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    if not trained:
        return Finding("trainable", "fail", NOTHING_TRAINABLE)
    total = sum(each.numel() for each in model.parameters())
    return Finding("trainable", "ok", f"{trained:,} of {total:,} parameters are trained")


def sampling_finding(sampler: Mapping[str, Any], of_model: Mapping[str, Any]) -> Finding:
    """Whether completions come from another distribution than the log-probabilities that they are trained with.

    Args:
        sampler: Options that completions are sampled with.
        of_model: Options in the model's own `generation_config`, which fill in for those that are None.
    """
    found = changing_options(sampler, of_model)
    if not found:
        return Finding("sampling", "ok", "completions are sampled from the distribution that is trained on")
    biased = [name for name in found if name in CHANGING]
    told = "; ".join(
        f"{name} is {value} (neutral: {(CHANGING | TRUNCATING)[name]}"
        + (", from the model's generation_config.json)" if sampler.get(name) is None else ")")
        for name, value in found.items()
    )
    harm = "changes what is sampled and not what is trained on" if biased else "cuts off tokens that training counts"
    return Finding(
        "sampling",
        "fail" if biased else "warn",
        f"{told}: that {harm}, and the ratio of the two is biased; set the neutral value in the run or in the file",
    )


def temperature_finding(sampler: float, trainer: float) -> Finding:
    """Whether both sides divide logits by the same temperature."""
    name = "temperature"
    if not (sampler > 0 and trainer > 0):
        return Finding(name, "fail", f"temperature is {min(sampler, trainer)}, and sampling needs more than 0")
    if not math.isclose(sampler, trainer):
        return Finding(
            name,
            "fail",
            f"completions are sampled at temperature {sampler} and trained on at {trainer}: make them equal",
        )
    return Finding(name, "ok", f"temperature is {trainer} on both sides")


def padding_finding(pad_token_id: int | None) -> Finding:
    """Whether there is a token that pads; it may be one that ends completions, which are told by their place."""
    name = "padding"
    if pad_token_id is None:
        return Finding(name, "fail", "the tokenizer has no padding token: set one that the model never samples")
    return Finding(name, "ok", f"token {pad_token_id} pads")


def thinking_finding(end_of_thinking: str | None, token_ids: Sequence[int], template: str | None) -> Finding:
    """Whether the end of reasoning can be found, where one is looked for.

    Args:
        end_of_thinking: Its text; None where the whole completion is reasoning.
        token_ids: Its tokens; none where the vocabulary cannot spell it.
        template: The chat template; None without one.
    """
    name = "thinking"
    if end_of_thinking is None:
        return Finding(name, "ok", "no end of thinking is looked for: completions are all reasoning")
    if not token_ids:
        return Finding(
            name,
            "warn",
            f"the vocabulary cannot spell {end_of_thinking!r}, so that all of a completion is taken for reasoning: set "
            "end_of_thinking to the model's own mark, or to null",
        )
    opening = end_of_thinking.replace("/", "")
    if template is not None and end_of_thinking not in template and opening not in template:
        return Finding(
            name,
            "ok",
            f"the chat template does not know {end_of_thinking!r}: a completion that does not hold it is all reasoning",
        )
    return Finding(name, "ok", f"reasoning ends at {end_of_thinking!r}")


def cache_finding(*, use_cache: bool) -> Finding:
    """Whether sampling keeps keys and values."""
    if use_cache:
        return Finding("cache", "ok", "sampling keeps keys and values")
    return Finding(
        "cache", "warn", "sampling does not keep keys and values and takes several times longer: set use_cache"
    )


def update_finding(weights: Float[Tensor, " sample"], learning_rate: float) -> Finding:
    """Whether an update of AdamW, about the learning rate in size, changes weights at all.

    A weight w in bf16 has neighbours at a distance of 2^(floor(log2 |w|) - 7), and moves if the step is more than half.

    Args:
        weights: Some of the model's, in their own type.
        learning_rate: At its highest.
    """
    name = "updates"
    if not len(weights):
        return Finding(name, "warn", "no weight is trained, and none can be looked at")
    if weights.dtype != torch.bfloat16:
        return Finding(
            name, "ok", f"weights are {str(weights.dtype).removeprefix('torch.')}, and small updates register"
        )
    spacing = torch.exp2(torch.floor(torch.log2(weights.float().abs().clamp(min=1e-38))) - 7)
    share = float((learning_rate > spacing / 2).float().mean())
    sentence = f"an update of {learning_rate:g} changes {share:.0%} of the weights, which are bf16"
    if share < SMALLEST_SHARE_MOVED:
        return Finding(name, "fail", f"{sentence}: keep them in float32 (dtype), or raise learning_rate")
    return Finding(name, "ok", sentence)


def gap_finding(sampler: Float[Tensor, " tokens"], trainer: Float[Tensor, " tokens"]) -> Finding:
    """Whether sampler and trainer give sampled tokens the same log-probabilities; mean |difference|, nats a token."""
    name = "log-probs"
    gap = float((sampler - trainer).abs().mean()) if len(sampler) else math.nan
    sentence = f"sampler and trainer differ by {gap:.4f} nats a token on {len(sampler)} tokens"
    if gap < LARGEST_GAP:
        return Finding(name, "ok", sentence)
    level = "warn" if gap < 2 * LARGEST_GAP else "fail"
    return Finding(
        name,
        level,
        f"{sentence}, where less than {LARGEST_GAP} is healthy: look for other sampling settings, another precision or "
        "attention in the sampler",
    )


def garbage_finding(rewards: Mapping[str, float], *, full_marks: float) -> Finding:
    """Whether completions that answer nothing earn what a right answer does.

    Args:
        rewards: Of each piece of garbage; NaN where ungradable.
        full_marks: From here on a reward is that of a right answer.
    """
    name = "garbage"
    for text, reward in rewards.items():
        if reward >= full_marks:
            return Finding(
                name,
                "fail",
                f"the reward of {text!r:.40} is {reward:g}, as of a right answer: it can be had without one",
            )
    for text, reward in rewards.items():
        if math.isnan(reward):
            return Finding(
                name, "warn", f"{text!r:.40} is ungradable, where it should be wrong: a policy could hide behind it"
            )
    return Finding(name, "ok", "completions that answer nothing earn nothing")


def rows_finding(padded: RowIsolation, packed: RowIsolation, *, reads_siblings: bool) -> Finding:
    """Whether rows of a batch are kept apart: padded ones, as they are in this run, and packed ones, as elsewhere.

    Args:
        padded: What was found where rows are padded.
        packed: What was found where they are laid end to end, told apart by position ids.
        reads_siblings: Whether the baseline is read from the states of siblings.
    """
    name = "rows"
    if padded.leaks:
        return Finding(name, "fail" if reads_siblings else "warn", padded.sentence)
    if packed.leaks:
        return Finding(name, "ok", f"{padded.sentence}, as this run has them; elsewhere: {packed.sentence}")
    return Finding(name, "ok", f"{padded.model_type} keeps rows apart, padded and packed")


def contract_finding(sentence: str, *, kept: bool, run: bool) -> Finding:
    """Whether TRL is what the trainer is made for.

    Args:
        sentence: That says so.
        kept: Whether it is.
        run: Whether the tests were run with this release.
    """
    return Finding("contract", "fail" if not kept else "ok" if run else "warn", sentence)


def memory_finding(free: float, needed: float) -> Finding:
    """Whether weights, gradients and the optimizer's moments fit; bytes."""
    name = "memory"
    sentence = f"training needs {needed / 2**30:.1f} GiB and more for activations, and {free / 2**30:.1f} GiB are free"
    if needed > free:
        return Finding(name, "fail", f"{sentence}: use a smaller model, LoRA, or another machine")
    if 1.5 * needed > free:
        return Finding(
            name, "warn", f"{sentence}: lower per_device_train_batch_size or max_completion_length if it runs out"
        )
    return Finding(name, "ok", sentence)


def disk_finding(free: float, needed: float) -> Finding:
    """Whether the run's checkpoints fit; bytes."""
    name = "disk"
    sentence = f"checkpoints take {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free"
    if needed > free:
        return Finding(name, "fail", f"{sentence}: make room, raise save_steps or set save_total_limit")
    return Finding(name, "ok", sentence)


def versions_finding(requirements: Sequence[str], installed: Mapping[str, str]) -> Finding:
    """Whether what is installed is inside the tested ranges.

    Args:
        requirements: As in a package's metadata; those of extras are not looked at.
        installed: Version by name.
    """
    name = "versions"
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and "extra" in str(requirement.marker):
            continue
        found = installed.get(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            return Finding(
                name,
                "warn",
                f"poise is tested with {requirement.name}{requirement.specifier} and found {found or 'none'}: install "
                "the versions in constraints.txt",
            )
    return Finding(name, "ok", "all packages are inside the tested ranges")
