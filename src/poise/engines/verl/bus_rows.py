"""Rows of verl's data bus as tensors and numbers: sums, stacks, spreads, and what their rewards come to."""

import math
from typing import Any

import torch
import transfer_queue as tq
from jaxtyping import Float, Num
from tensordict import TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta

from poise.engines.verl.rewards import RAISED


def bus_rows(batch: KVBatchMeta, fields: list[str]) -> TensorDict:
    """Fields of all rows of a batch.

    Raises:
        RuntimeError: If the bus has lost rows.
    """
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
    if len(data) != len(batch.keys):
        raise RuntimeError(f"verl's data bus was asked for {len(batch.keys)} rows and gave {len(data)}")
    return data


def raised_share(data: TensorDict, rows: list[int]) -> float:
    """Share of rollouts whose reward function raised, by what `guarded_score` has sent along."""
    column = data.get("extra_fields", None)
    told = [] if column is None else column.tolist()
    infos = [(told[row] or {}).get("reward_extra_info") or {} for row in rows] if told else []
    return sum(bool(info.get(RAISED)) for info in infos) / max(1, len(rows))


def mean_rewards(rewards: Float[Tensor, " rollouts"], domains: list[str]) -> dict[str, float]:
    """Mean rewards over gradable rollouts, of all and of every domain that has some."""
    gradable: dict[str, list[float]] = {}
    for reward, domain in zip(rewards.tolist(), domains, strict=True):
        if reward == reward:
            gradable.setdefault(domain, []).append(reward)
    everything = [reward for of_domain in gradable.values() for reward in of_domain]
    by_domain = {f"poise/reward/{domain}": sum(each) / len(each) for domain, each in sorted(gradable.items())}
    return {"poise/reward": sum(everything) / len(everything) if everything else math.nan} | by_domain


def scaled_rows(nested: Any, factors: Float[Tensor, " rows"]) -> Any:
    """Every nested row times its factor."""
    of_token = factors.to(nested.values()).repeat_interleave(nested.offsets().diff())
    return torch.nested.nested_tensor_from_jagged(nested.values() * of_token, nested.offsets())


def row_sums(nested: Tensor) -> Float[Tensor, " rows"]:
    """The sum of every nested row."""
    return torch.stack([row.double().sum() for row in nested.unbind()])


def stacked(nested: Tensor) -> Num[Tensor, "rows width"]:
    """Nested rows of one width as one tensor."""
    return torch.stack(list(nested.unbind()))


def on_sampled_tokens(of_row: Float[Tensor, " rows"], response_mask: Any) -> Any:
    """One number a row on the tokens that the policy sampled, and 0 on others, nested as they are."""
    lengths, mask = response_mask.offsets().diff(), response_mask.values()
    values = of_row.to(mask.device).float().repeat_interleave(lengths) * mask
    return torch.nested.nested_tensor_from_jagged(values, response_mask.offsets())
