"""Scalars of a rollout by name, beside its hidden states.

Entropies, lengths, shares and repetition of a completion's segments. They are counted on token ids, never on decoded
text, and each is a function of its own rollout alone: no statistic of the batch enters, not even its padded length. An
unknown name is an error that says which ones there are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from poise.features.rollout_features import STATISTICS, entropy_statistic, require_bool

OWN = "own:"
"""How the name of a scalar begins that the user's own loop adds to `Features.scalars`."""

_SEGMENTS = ("completion", "reasoning", "answer")
_TOKENS_PER_UNIT = 1000.0
_ID_BITS = 21  # three ids of up to two million tokens fit into one signed 64-bit key


@dataclass(frozen=True)
class Completions:
    """The tokens that scalars are read from: entropies in nats, masks of the segments, and ids where they are known."""

    entropies: Float[Tensor, "rows columns"]
    completion: Bool[Tensor, "rows columns"]
    reasoning: Bool[Tensor, "rows columns"]
    answer: Bool[Tensor, "rows columns"]
    ids: Int[Tensor, "rows columns"] | None = None

    def __post_init__(self) -> None:
        for segment in _SEGMENTS:
            require_bool(getattr(self, segment), name=f"{segment}_mask")

    def mask(self, segment: str) -> Bool[Tensor, "rows columns"]:
        """True on the segment's tokens."""
        mask: Tensor = getattr(self, segment)
        return mask

    def tokens(self, segment: str) -> Float[Tensor, " rows"]:
        """How many tokens the segment has."""
        return self.mask(segment).sum(dim=1).to(torch.float32)


Scalar = Callable[[Completions], Float[Tensor, " rows"]]


def named_scalars(completions: Completions, names: Sequence[str]) -> dict[str, Float[Tensor, " rows"]]:
    """Read the scalars of those names, in float32.

    Raises:
        ValueError: If a name is not in `SCALARS`, or it needs token ids and there are none.
    """
    check_scalar_names(names)
    return {name: SCALARS[name](completions).to(torch.float32) for name in names}


def check_scalar_names(names: Sequence[str], *, own: bool = False) -> None:
    """Raise unless every name is one of `SCALARS`, or (where `own` ones are allowed) begins with `own:`."""
    for name in names:
        if name not in SCALARS and not (own and name.startswith(OWN)):
            closest = get_close_matches(name, SCALARS, n=1, cutoff=0.0)[0]
            extra = f", and what begins with {OWN!r}" if own else ""
            raise ValueError(f"scalars are {', '.join(SCALARS)}{extra}; got {name!r}, the closest is {closest!r}")


def _entropy(completions: Completions, *, segment: str, statistic: str) -> Float[Tensor, " rows"]:
    return entropy_statistic(completions.entropies, completions.mask(segment), statistic)


def _length(completions: Completions, *, segment: str) -> Float[Tensor, " rows"]:
    return completions.tokens(segment) / _TOKENS_PER_UNIT


def _log_length(completions: Completions, *, segment: str) -> Float[Tensor, " rows"]:
    return completions.tokens(segment).log1p()


def _present(completions: Completions, *, segment: str) -> Float[Tensor, " rows"]:
    return completions.mask(segment).any(dim=1).to(torch.float32)


def _share(completions: Completions, *, segment: str) -> Float[Tensor, " rows"]:
    return completions.tokens(segment) / completions.tokens("completion").clamp(min=1)


def _unique_ratio(completions: Completions, *, segment: str) -> Float[Tensor, " rows"]:
    counted = completions.mask(segment)
    return _distinct(_ids(completions), counted) / completions.tokens(segment).clamp(min=1)


def _repetition_ratio(completions: Completions, *, segment: str) -> Float[Tensor, " rows"]:
    mask, ids = completions.mask(segment), _ids(completions).long()
    if ids.shape[1] < 3:
        return torch.zeros(len(ids), device=ids.device)
    counted = mask[:, :-2] & mask[:, 1:-1] & mask[:, 2:]
    trigrams = (ids[:, :-2] << 2 * _ID_BITS) | (ids[:, 1:-1] << _ID_BITS) | ids[:, 2:]
    total = counted.sum(dim=1)
    return (total - _distinct(trigrams, counted)) / total.clamp(min=1)


def _gap(completions: Completions, *, kind: str, segments: tuple[str, str]) -> Float[Tensor, " rows"]:
    first, second = (SCALARS[f"{segment}_{kind}"](completions) for segment in segments)
    both = completions.mask(segments[0]).any(dim=1) & completions.mask(segments[1]).any(dim=1)
    return torch.where(both, first - second, 0.0)


def _entropy_times_log_length(completions: Completions) -> Float[Tensor, " rows"]:
    entropy = _entropy(completions, segment="reasoning", statistic="mean")
    return entropy * _log_length(completions, segment="completion")


def _ids(completions: Completions) -> Int[Tensor, "rows columns"]:
    if completions.ids is None:
        raise ValueError("unique-token and repetition ratios are counted on token ids: ids are needed, got None")
    return completions.ids


def _distinct(keys: Int[Tensor, "rows columns"], counted: Bool[Tensor, "rows columns"]) -> Int[Tensor, " rows"]:
    """How many different keys each row has under the mask; keys are not negative."""
    if keys.shape[1] == 0:
        return torch.zeros(len(keys), dtype=torch.int64, device=keys.device)
    ordered = keys.masked_fill(~counted, -1).sort(dim=1).values
    new = torch.cat([ordered[:, :1] >= 0, ordered[:, 1:] != ordered[:, :-1]], dim=1)
    return (new & (ordered >= 0)).sum(dim=1)


def _table() -> dict[str, Scalar]:
    table: dict[str, Scalar] = {
        f"{segment}_{statistic}_entropy": partial(_entropy, segment=segment, statistic=statistic)
        for statistic in STATISTICS
        for segment in _SEGMENTS
    }
    for name, function, segments in (
        ("length", _length, _SEGMENTS),
        ("log_length", _log_length, _SEGMENTS),
        ("present", _present, _SEGMENTS[1:]),
        ("share", _share, _SEGMENTS[1:]),
        ("unique_ratio", _unique_ratio, _SEGMENTS),
        ("repetition_ratio", _repetition_ratio, _SEGMENTS),
    ):
        table |= {f"{segment}_{name}": partial(function, segment=segment) for segment in segments}
    for first, second, kind in (
        ("reasoning", "answer", "mean_entropy"),
        ("answer", "completion", "mean_entropy"),
        ("reasoning", "completion", "unique_ratio"),
        ("reasoning", "completion", "repetition_ratio"),
    ):
        table[f"{first}_{second}_gap_{kind}"] = partial(_gap, kind=kind, segments=(first, second))
    return table | {"reasoning_mean_entropy_times_log_length": _entropy_times_log_length}


SCALARS: Mapping[str, Scalar] = MappingProxyType(_table())
"""Every scalar by name; 0 where its segment has no token.

- `{segment}_{statistic}_entropy`: mean, max, min or last token entropy, nats;
- `{segment}_length`, `{segment}_log_length`: thousands of tokens; log(1 + tokens);
- `{segment}_present`, `{segment}_share`: 1 where the segment has a token; its share of the completion's tokens;
- `{segment}_unique_ratio`: different tokens over tokens;
- `{segment}_repetition_ratio`: share of the segment's trigrams that have occurred in it before;
- `{first}_{second}_gap_{name}`: the first segment's scalar minus the second's, 0 where either has no token;
- `reasoning_mean_entropy_times_log_length`: by log(1 + tokens of the completion).
"""
