"""The input of one step, checked once: on the CPU, and in float64 where it is used in arithmetic."""

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from poise.features.rollout_features import Features

_LARGEST = 1e90  # rewards and weights beyond are held there, so that no product or sum of them overflows


@dataclass(frozen=True)
class Batch:
    """The rollouts of one step, one row each."""

    features: Features | None
    scalars: Float[Tensor, "rows scalars"]
    """Those that the preset reads, in its order."""
    rewards: Float[Tensor, " rows"]
    """0 where the rollout is not gradable."""
    gradable: Bool[Tensor, " rows"]
    groups: Int[Tensor, " rows"]
    keys: list[int]
    domains: list[str]
    weights: Float[Tensor, " rows"]

    @property
    def widths(self) -> list[int]:
        """Columns of prompt states, completion states and scalars."""
        if self.features is None:
            return [0, 0, 0]
        parts = (self.features.prompt, self.features.completion, self.scalars)
        return [part.shape[1] for part in parts]


def checked_batch(
    features: Features | None,
    rewards: Tensor | Sequence[float],
    prompts: Sequence[Hashable] | Tensor | NDArray[Any],
    domains: Sequence[str] | None,
    weights: Tensor | Sequence[float] | None,
    *,
    needs_features: bool,
    needs_siblings: bool,
    scalars: Sequence[str],
) -> Batch:
    """Bring the arguments of `OnlineBaseline.step` into one form.

    Raises:
        ValueError: If lengths differ, something is not finite or negative that must be, features or one of the named
            scalars are missing, a prompt spans two domains, or a prompt lacks the second rollout that it needs.
    """
    rewards = torch.as_tensor(rewards, dtype=torch.float64).detach().cpu()
    if rewards.ndim != 1:
        raise ValueError(f"rewards must be one number a rollout, got a tensor of shape {tuple(rewards.shape)}")
    rows = len(rewards)
    if weights is None:
        weights = torch.ones(rows, dtype=torch.float64)
    weights = torch.as_tensor(weights, dtype=torch.float64).detach().cpu()
    if weights.ndim != 1:
        raise ValueError(f"weights must be one number a rollout, got a tensor of shape {tuple(weights.shape)}")
    domains = [""] * rows if domains is None else [str(domain) for domain in domains]
    if hasattr(prompts, "tolist"):  # entries of a tensor or an array are no keys: a tensor's hash is its identity
        prompts = prompts.tolist()
    lengths = {"prompts": len(prompts), "domains": len(domains), "weights": len(weights)}
    if features is None and needs_features and rows:
        raise ValueError("this preset reads hidden states: features are needed, got None")
    if features is not None:
        lengths |= {name: len(getattr(features, name)) for name in ("prompt", "completion", "entropies")}
    for name, length in lengths.items():
        if length != rows:
            raise ValueError(f"{name} must have one row for each of the {rows} rewards, got {length}")
    if torch.isinf(rewards).any():
        raise ValueError("rewards must be finite, or NaN where a rollout is not gradable; got an infinite one")
    bad = ~(weights.isfinite() & (weights >= 0))
    if bad.any():
        raise ValueError(f"weights must be finite and not negative, got {float(weights[bad][0])}")
    features = _finite(features, scalars) if features is not None and needs_features else None
    gradable = ~rewards.isnan()
    groups = prompt_groups(prompts)
    _require_one_domain(groups, domains)
    if needs_siblings and rows and int(torch.bincount(groups).min()) < 2:
        raise ValueError("this preset's baseline comes from siblings: it needs at least 2 rollouts per prompt, got 1")
    return Batch(
        features=features,
        scalars=torch.zeros(rows, 0) if features is None else features.columns(scalars),
        rewards=rewards.nan_to_num(0.0).clamp(-_LARGEST, _LARGEST),
        gradable=gradable,
        groups=groups,
        keys=prompt_keys(prompts),
        domains=domains,
        weights=torch.where(weights > 0, weights.clamp(1 / _LARGEST, _LARGEST), 0),
    )


def prompt_groups(prompts: Sequence[Hashable]) -> Int[Tensor, " rows"]:
    """The number of each row's prompt, in order of first appearance; equal prompts are siblings."""
    index: dict[Hashable, int] = {}
    return torch.tensor([index.setdefault(prompt, len(index)) for prompt in prompts], dtype=torch.int64)


def prompt_keys(prompts: Sequence[Hashable]) -> list[int]:
    """Stable 63-bit keys of prompts, from their `repr`; what is stored in their place."""
    return [int.from_bytes(blake2b(repr(p).encode(), digest_size=8).digest(), "big") >> 1 for p in prompts]


def prompt_id(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """One string per distinct prompt, text or messages: rollouts with equal strings are siblings.

    The first step is halved, and history is kept, by prompts: engines that named them otherwise would differ.
    """
    return prompt if isinstance(prompt, str) else json.dumps(list(prompt), sort_keys=True, ensure_ascii=False)


def _finite(features: Features, scalars: Sequence[str]) -> Features:
    """The features on the CPU in float32, with those of the named scalars that are not in `entropies`."""
    parts = {name: getattr(features, name) for name in ("prompt", "completion", "entropies")}
    read = {name: features.scalars[name] for name in scalars if name in features.scalars}
    for name, part in (parts | read).items():
        bad = _rows_not_finite(part[:, None] if part.ndim == 1 else part)
        if bad.any():
            raise ValueError(
                f"features must be finite; the {name} features of {int(bad.sum())} of {len(bad)} rollouts are not"
            )
    whole = Features(**parts, missing=features.missing, scalars=read)
    return whole.mapped(lambda part: part.detach().cpu() if part.dtype == torch.bool else part.detach().cpu().float())


def _rows_not_finite(part: Tensor) -> Bool[Tensor, " rows"]:
    """Which rows hold something that is not finite; a row whose sum is finite does not, and is not copied."""
    bad = ~part.sum(dim=1).isfinite()
    bad[bad.clone()] = ~part[bad].isfinite().all(dim=1)
    return bad


def _require_one_domain(groups: Int[Tensor, " rows"], domains: Sequence[str]) -> None:
    first: dict[int, str] = {}
    for group, domain in zip(groups.tolist(), domains, strict=True):
        if first.setdefault(group, domain) != domain:
            raise ValueError(f"rollouts of one prompt must share its domain, got {first[group]!r} and {domain!r}")
