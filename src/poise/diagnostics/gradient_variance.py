"""The variance of the policy gradient under a baseline, measured and not inferred from a norm.

On frozen rollouts with scores s_i = grad log pi(y_i | x), every baseline's gradient is a combination of the same
vectors: g_x = mean_{i in x} (r_i - b_i) s_i. So one matrix of inner products, K_ij = <s_i, s_j>, tells the variance
under any baseline, all of them on the same rollouts:

    tr Cov(mean g) = 1/(P (P-1)) sum_x ||g_x - gbar||^2
    ||E g||^2      = (||sum g||^2 - sum_x ||g_x||^2) / (P (P-1))

Intervals are delete-one-prompt jackknives; of a ratio, jointly. A bootstrap would break these statistics: a prompt
drawn twice is a pair of prompts with the same gradient.

Dimensions: N rollouts, P prompts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

_TOKENS_AT_ONCE = 512


@dataclass(frozen=True)
class Estimate:
    """A number with its jackknife standard error."""

    value: float
    standard_error: float

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval, normal."""
        return self.value - 1.96 * self.standard_error, self.value + 1.96 * self.standard_error

    def times(self, factor: float) -> "Estimate":
        """In another unit."""
        return Estimate(factor * self.value, abs(factor) * self.standard_error)


@dataclass(frozen=True)
class PromptGradients:
    """Inner products of the prompts' gradients under one vector of advantages."""

    products: Float[Tensor, "P P"]

    def trace_covariance(self) -> Estimate:
        """tr Cov of the mean gradient over P prompts."""
        return _jackknifed(lambda norms, total, prompts: _trace(norms, total, prompts), [self])

    def squared_signal(self) -> Estimate:
        """||E g||^2, unbiased; it can come out negative where noise dominates."""
        return _jackknifed(lambda norms, total, prompts: _signal(norms, total, prompts), [self])

    def noise_to_signal(self) -> Estimate:
        """tr Cov / ||E g||^2, which does not depend on the unit of advantages; of use where the signal is clear."""
        return _jackknifed(
            lambda norms, total, prompts: _trace(norms, total, prompts) / _signal(norms, total, prompts), [self]
        )

    def variance_ratio(self, other: "PromptGradients") -> Estimate:
        """tr Cov under these advantages over that under `other`'s, on the same rollouts."""
        return _jackknifed(
            lambda norms, total, prompts: _trace(norms[0], total[0], prompts) / _trace(norms[1], total[1], prompts),
            [self, other],
        )


def prompt_gradients(
    score_products: Float[Tensor, "N N"], advantages: Float[Tensor, " N"], groups: Int[Tensor, " N"]
) -> PromptGradients:
    """Inner products of g_x = mean_{i in x} A_i s_i, from those of the scores.

    Raises:
        ValueError: If there are fewer than three prompts, the least that a jackknife needs.
    """
    num_prompts = int(groups.max()) + 1
    if num_prompts < 3:
        raise ValueError(f"gradient variance needs at least 3 prompts, got {num_prompts}")
    share = torch.zeros(num_prompts, len(groups), dtype=torch.float64)
    share[groups, torch.arange(len(groups))] = advantages.to(torch.float64)
    share /= torch.bincount(groups, minlength=num_prompts)[:, None]
    return PromptGradients(share @ score_products.to(torch.float64) @ share.T)


def score_products(
    model: nn.Module,
    input_ids: Int[Tensor, "N columns"],
    attention_mask: Int[Tensor, "N columns"] | Bool[Tensor, "N columns"],
    completion_mask: Bool[Tensor, "N columns"],
    *,
    parameters: Sequence[str] | None = None,
    watch: Callable[[int], None] = lambda done: None,
) -> Float[Tensor, "N N"]:
    """K_ij = <s_i, s_j> with s_i the gradient of the summed log-probability of completion i, at temperature 1.

    One backward pass a rollout, its padding cut off. All scores are held in memory: N times the number of parameters,
    in float32.

    Args:
        model: A causal language model, in eval mode.
        input_ids: Prompts and completions.
        attention_mask: 1 on tokens.
        completion_mask: True on completion tokens, over the same columns.
        parameters: Names of the parameters that gradients are taken of; default all that require them.
        watch: Called with the number of scores that are done.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    chosen = list(named.values()) if parameters is None else [named[name] for name in parameters]
    scores = torch.empty(len(input_ids), sum(p.numel() for p in chosen), dtype=torch.float32)
    for row in range(len(input_ids)):
        tokens = attention_mask[row].bool()
        ids, counted = input_ids[row, tokens][None], completion_mask[row, tokens]
        logprobs = model(ids).logits[0, :-1].float().log_softmax(-1)
        total = (logprobs.gather(1, ids[0, 1:, None])[:, 0] * counted[1:]).sum()
        parts = torch.autograd.grad(total, chosen, materialize_grads=True)
        scores[row] = torch.cat([part.flatten() for part in parts])
        watch(row + 1)
    return (scores @ scores.T).to(torch.float64)


@torch.no_grad()
def head_score_products(
    model: nn.Module,
    input_ids: Int[Tensor, "N columns"],
    attention_mask: Int[Tensor, "N columns"] | Bool[Tensor, "N columns"],
    completion_mask: Bool[Tensor, "N columns"],
    *,
    watch: Callable[[int], None] = lambda done: None,
) -> Float[Tensor, "N N"]:
    """K_ij as `score_products`, of the weights of the output head alone, where they are used as the head.

    The gradient of log pi(y_t) with respect to the head is (e_{y_t} - p_t) h_t', so without one ever being formed

        K_ij = sum_{t in i, u in j} <e_{y_t} - p_t, e_{y_u} - p_u> <h_t, h_u>.

    One forward pass a rollout. Held in memory: the number of completion tokens times the vocabulary, in float32.

    Args:
        model: A causal language model of `transformers`, in eval mode; its head may be tied to its embedding.
        input_ids: Prompts and completions.
        attention_mask: 1 on tokens.
        completion_mask: True on completion tokens, over the same columns.
        watch: Called with the number of rollouts that are read.
    """
    decoder, head = model.get_decoder(), model.get_output_embeddings()  # type: ignore[operator]
    states, errors, owners = [], [], []
    for row in range(len(input_ids)):
        tokens = attention_mask[row].bool()
        ids, counted = input_ids[row, tokens][None], completion_mask[row, tokens][1:]
        read = decoder(ids).last_hidden_state[0, :-1][counted].float()
        probabilities = head(read.to(head.weight.dtype)).float().softmax(-1)
        states.append(read)
        errors.append(-probabilities.scatter_add_(1, ids[0, 1:][counted][:, None], -torch.ones(len(read), 1)))
        owners += [row] * len(read)
        watch(row + 1)
    owner = torch.tensor(owners, device=input_ids.device)
    state, error = torch.cat(states), torch.cat(errors)
    products = torch.zeros(len(input_ids), len(input_ids), dtype=torch.float64)
    for first in range(0, len(owner), _TOKENS_AT_ONCE):
        chosen = slice(first, first + _TOKENS_AT_ONCE)
        between = ((error[chosen] @ error.T) * (state[chosen] @ state.T)).to(torch.float64)
        by_rollout = between.new_zeros(len(between), len(input_ids)).index_add_(1, owner, between)
        products.index_add_(0, owner[chosen], by_rollout)
    return products


def _trace(norms: Tensor, total: Tensor, prompts: int) -> Tensor:
    """sum ||g_x - gbar||^2 / (P (P-1)) from sum ||g_x||^2 and ||sum g||^2."""
    return (norms - total / prompts) / (prompts * (prompts - 1))


def _signal(norms: Tensor, total: Tensor, prompts: int) -> Tensor:
    return (total - norms) / (prompts * (prompts - 1))


def _jackknifed(statistic: Callable[[Tensor, Tensor, int], Tensor], measured: Sequence[PromptGradients]) -> Estimate:
    products = torch.stack([one.products for one in measured])  # (arms, P, P)
    prompts = products.shape[-1]
    own = products.diagonal(dim1=1, dim2=2)  # ||g_x||^2
    with_all = products.sum(dim=2)  # <g_x, sum g>
    norms, total = own.sum(dim=1), with_all.sum(dim=1)
    value = statistic(norms.squeeze(0), total.squeeze(0), prompts)
    # Without prompt x: sum ||g||^2 - ||g_x||^2 and ||sum g - g_x||^2.
    left_norms = norms[:, None] - own
    left_totals = total[:, None] - 2 * with_all + own
    left = statistic(left_norms.squeeze(0), left_totals.squeeze(0), prompts - 1)
    spread = (prompts - 1) / prompts * ((left - left.mean()) ** 2).sum()
    return Estimate(float(value), float(spread.sqrt()))
