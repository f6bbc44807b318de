"""Features: what the baseline may read of one rollout, and how much the rollout's score weighs.

A rollout is cut into segments on token ids, never on decoded text: the prompt, the completion, and inside it the
reasoning and the answer. A segment without a token is a stated case with a stated value (zero) and a flag, never a
silent one. Masks are bool and True means "counts"; entropies and logprobs stand at the token that was predicted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SEGMENTS = ("prompt", "completion", "reasoning", "answer")
STATISTICS = ("mean", "max", "min", "last")
MEAN_ENTROPIES = ("completion_mean_entropy", "reasoning_mean_entropy", "answer_mean_entropy")
"""The names of the columns of `Features.entropies`."""
LOSS_NORMALIZATIONS = ("constant", "token", "sequence")

_CHUNK_ELEMENTS = 2**24  # logits brought to float32 at once: 64 MiB
_LOGPROB_SLACK = 1e-2  # a log-softmax in low precision may round to slightly above 0


@dataclass(frozen=True)
class Features:
    """The features of a batch of rollouts, one row each.

    Attributes:
        prompt: Pooled hidden states of the prompt, the layers side by side; zero where the prompt has no token.
        completion: Pooled hidden states of the completion's reasoning; zero where the reasoning has no token.
        entropies: Mean token entropies of completion, reasoning and answer, in nats; 0 where the segment has no token.
        missing: True where a segment, in the order of `SEGMENTS`, has no token.
        scalars: Further numbers by name, one a rollout, for recipes that name them: see `scalars.SCALARS`.
    """

    prompt: Float[Tensor, "rows prompt_width"]
    completion: Float[Tensor, "rows completion_width"]
    entropies: Float[Tensor, "rows 3"]
    missing: Bool[Tensor, "rows segments"]
    scalars: Mapping[str, Float[Tensor, " rows"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = [len(self.prompt), len(self.completion), len(self.entropies), len(self.missing)]
        rows += [len(scalar) for scalar in self.scalars.values()]
        if len(set(rows)) > 1:
            raise ValueError(f"features need one row per rollout in every field, got {rows} rows")
        if self.entropies.shape[1] != len(MEAN_ENTROPIES):
            raise ValueError(
                f"entropies need the {len(MEAN_ENTROPIES)} columns {', '.join(MEAN_ENTROPIES)}, "
                f"got {self.entropies.shape[1]}; other numbers have their place in scalars"
            )

    def columns(self, names: Sequence[str]) -> Float[Tensor, "rows names"]:
        """The scalars of those names side by side, the mean entropies among them.

        Raises:
            ValueError: If there is no scalar of that name.
        """
        held = dict(zip(MEAN_ENTROPIES, self.entropies.T, strict=True)) | dict(self.scalars)
        for name in names:
            if name not in held:
                raise ValueError(f"the features need the scalar {name!r}, got {', '.join(held)}")
        return torch.stack([held[name] for name in names], dim=1) if names else self.entropies[:, :0]

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "Features":
        """The features with a function of rows applied to every tensor: gathered, moved, or some of the rows."""
        parts = {name: function(getattr(self, name)) for name in ("prompt", "completion", "entropies", "missing")}
        return Features(**parts, scalars={name: function(scalar) for name, scalar in self.scalars.items()})


def end_of_thinking_ids(tokenizer: Any, text: str | None) -> list[int]:
    """The tokens of the text that ends the reasoning; none without a text, or where the vocabulary cannot spell it."""
    ids = [] if text is None else tokenizer.encode(text, add_special_tokens=False)
    return [] if tokenizer.unk_token_id in ids else list(ids)


def reasoning_mask(
    completion_ids: Int[Tensor, "rows columns"],
    completion_mask: Bool[Tensor, "rows columns"],
    *,
    end_of_thinking_ids: Sequence[int],
) -> tuple[Bool[Tensor, "rows columns"], Bool[Tensor, "rows columns"]]:
    """Cut every completion into its reasoning and its answer.

    The reasoning reaches up to and including the last occurrence of the end-of-thinking ids; the answer is what
    follows. A completion without them (truncated, or from a model that does not think) is reasoning altogether and has
    no answer. A final end-of-sequence token belongs to the segment it stands in. The columns may be those of the
    completions or of whole rows with their prompts: an occurrence counts only where the mask is True throughout.

    Args:
        completion_ids: Token ids.
        completion_mask: True on the completion's tokens.
        end_of_thinking_ids: The ids that end the reasoning, in order; one or several. Empty for a model that has none.

    Returns:
        The masks of the reasoning and of the answer: disjoint, and together the completion's mask.

    Raises:
        ValueError: If the mask is not bool.
    """
    require_bool(completion_mask, name="completion_mask")
    columns = completion_ids.shape[1]
    length = len(end_of_thinking_ids)
    if length == 0 or length > columns:
        return completion_mask.clone(), torch.zeros_like(completion_mask)
    end = torch.tensor(list(end_of_thinking_ids), device=completion_ids.device, dtype=completion_ids.dtype)
    occurs = ((completion_ids.unfold(1, length, 1) == end) & completion_mask.unfold(1, length, 1)).all(dim=2)
    positions = torch.arange(columns, device=completion_ids.device)
    last_start = torch.where(occurs, positions[: columns - length + 1], -1).amax(dim=1)
    last_column = torch.where(last_start >= 0, last_start + length - 1, columns)
    reasoning = completion_mask & (positions <= last_column[:, None])
    return reasoning, completion_mask & ~reasoning


def mean_entropies(
    entropies: Float[Tensor, "rows columns"],
    completion_mask: Bool[Tensor, "rows columns"],
    reasoning_mask: Bool[Tensor, "rows columns"],
    answer_mask: Bool[Tensor, "rows columns"],
) -> Float[Tensor, "rows 3"]:
    """Average the token entropies over completion, reasoning and answer (POISE, arXiv:2605.07579), in nats.

    0 where a segment has no token.

    Raises:
        ValueError: If a mask is not bool.
    """
    masks = {"completion_mask": completion_mask, "reasoning_mask": reasoning_mask, "answer_mask": answer_mask}
    for name, mask in masks.items():
        require_bool(mask, name=name)
    return torch.stack([entropy_statistic(entropies, mask, "mean") for mask in masks.values()], dim=1)


def entropy_statistic(
    entropies: Float[Tensor, "rows columns"], mask: Bool[Tensor, "rows columns"], statistic: str
) -> Float[Tensor, " rows"]:
    """Mean, max, min or last token entropy under the mask, in float32 nats; 0 where the mask is empty."""
    entropies = entropies.float()
    if mask.shape[1] == 0:
        return entropies.new_zeros(len(entropies))
    empty = ~mask.any(dim=1)
    if statistic == "mean":
        # In float64, so that the order of summation, and with it the batch's padding, is not seen in the result.
        value = (entropies.masked_fill(~mask, 0.0).sum(dim=1, dtype=torch.float64) / mask.sum(dim=1)).float()
    elif statistic == "max":
        value = entropies.masked_fill(~mask, -torch.inf).amax(dim=1)
    elif statistic == "min":
        value = entropies.masked_fill(~mask, torch.inf).amin(dim=1)
    else:
        columns = torch.arange(mask.shape[1], device=mask.device)
        last = torch.where(mask, columns, 0).amax(dim=1)
        value = entropies.gather(1, last[:, None])[:, 0]
    return value.masked_fill(empty, 0.0)


def token_entropies(
    logits: Float[Tensor, "*tokens vocabulary"], *, temperature: float = 1.0
) -> Float[Tensor, "*tokens"]:
    """Return the entropy of every next-token distribution, exactly, in float32 nats.

        H = -sum_v p_v log p_v,   p = softmax(logits / temperature)

    Worked through in chunks of tokens, so that a batch of logits in low precision is never held in float32 at once.

    Args:
        logits: Logits at the positions that predict the tokens; minus infinity bars a token.
        temperature: The sampling temperature.

    Raises:
        ValueError: If the temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"token entropies need a positive temperature, got {temperature}")
    shape, vocabulary = logits.shape[:-1], logits.shape[-1]
    rows = logits.reshape(shape.numel(), vocabulary)
    chunks = torch.split(rows, max(1, _CHUNK_ELEMENTS // max(1, vocabulary)))
    return torch.cat([_entropies(chunk.float() / temperature) for chunk in chunks]).reshape(shape)


def score_norm_weights(
    logprobs: Float[Tensor, "rows columns"],
    entropies: Float[Tensor, "rows columns"],
    completion_mask: Bool[Tensor, "rows columns"],
    *,
    loss_normalization: str = "constant",
) -> Float[Tensor, "rows"]:
    """Estimate the squared norm of every rollout's score in logit space, from what the forward pass knows anyway.

        w_i = sum_t [1 - 2 pi_t + clamp(exp(-H_t), pi_t^2, pi_t^2 + (1 - pi_t)^2)]

    The score of a token in logit space is e_y - p, with squared norm 1 - 2 pi + sum_v p_v^2; exp(-H) stands for the
    sum and the clamp is the sum's exact range. So every token weighs between (1 - pi)^2 and 2 (1 - pi)^2, and it is
    computed in that form, (1 - pi)^2 + clamp(exp(-H) - pi^2, 0, (1 - pi)^2): nothing cancels where pi is near 1.

    Args:
        logprobs: Log-probability of the sampled token, pi = exp(logprob).
        entropies: Entropy of the same distribution, at the same temperature, in nats.
        completion_mask: True on the tokens that receive gradient.
        loss_normalization: "constant" or "token" where the loss divides by the same number for every rollout,
            "sequence" where it divides by the rollout's own number of tokens: the weight is then divided by its square.

    Returns:
        One weight per rollout, in float64; 0 where the mask is empty.

    Raises:
        ValueError: If the normalization is unknown, the mask is not bool, or under the mask a logprob or an entropy is
            not finite or a logprob is positive.
    """
    if loss_normalization not in LOSS_NORMALIZATIONS:
        raise ValueError(f"loss_normalization is one of {', '.join(LOSS_NORMALIZATIONS)}, got {loss_normalization!r}")
    require_bool(completion_mask, name="completion_mask")
    logprobs = logprobs.double().masked_fill(~completion_mask, 0.0)
    entropies = entropies.double().masked_fill(~completion_mask, 0.0)
    for name, values in (("logprobs", logprobs), ("entropies", entropies)):
        bad = int((~values.isfinite()).sum())
        if bad:
            raise ValueError(f"score-norm weights need finite {name} under completion_mask, got {bad} that are not")
    if bool((logprobs > _LOGPROB_SLACK).any()):
        raise ValueError(f"score-norm weights need logprobs of at most 0, got {logprobs.max().item():.4g}")
    logprobs = logprobs.clamp(max=0.0)
    rest = -torch.expm1(logprobs)  # 1 - pi; exactly 0 outside the mask, so those tokens weigh nothing
    spread = ((-entropies).exp() - (2 * logprobs).exp()).clamp(min=torch.zeros_like(rest), max=rest.square())
    weights = (rest.square() + spread).sum(dim=1)
    if loss_normalization == "sequence":
        weights = weights / completion_mask.sum(dim=1).clamp(min=1).square()
    return weights


def require_bool(mask: Tensor, *, name: str) -> None:
    """Raise unless the mask is bool: on integers `~` would silently mean something else."""
    if mask.dtype != torch.bool:
        raise ValueError(f"{name} needs dtype torch.bool, got {mask.dtype}")


def _entropies(logits: Float[Tensor, "tokens vocabulary"]) -> Float[Tensor, "tokens"]:
    logprobs = logits.log_softmax(dim=-1)
    # A barred token has log-probability minus infinity; bounded below, 0 times it is 0 and not NaN.
    return -(logprobs.exp() * logprobs.clamp(min=torch.finfo(logprobs.dtype).min)).sum(dim=-1)
