"""The update of verl's trainer: of the mean over real rows, and on a share of them where a run asks for it."""

from typing import Any

import torch
import transfer_queue as tq
from jaxtyping import Float
from tensordict import TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from poise.engines.verl.bus_rows import bus_rows, scaled_rows
from poise.engines.verl.settings import PoiseSettings, aggregation
from poise.engines.verl.update_share import drawn_rows, drawn_size


class PoiseUpdate(PPOTrainer):  # type: ignore[misc]
    """verl's trainer, whose policy is updated on the rows that count, each as much as it stands for."""

    settings: PoiseSettings
    _gradient_sizes: dict[str, float]
    """Of every row of the newest batch by its key, where a share is drawn."""

    def _update_actor(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        """verl's update, of the mean over real rows, and on a share of them where `poise.update_share` asks for it."""
        actor, rollouts = self.config.actor_rollout_ref.actor, self.config.actor_rollout_ref.rollout.n
        prompts = actor.ppo_mini_batch_size
        real = sum(not tag.get("is_padding", False) for tag in batch.tags)
        is_mean = aggregation(self.config).startswith("seq-mean")
        factor = len(batch) / max(1, real) if is_mean else 1.0  # verl's mean is over rows that it has filled in, too
        counts = torch.full((len(batch),), factor, dtype=torch.float64)
        chosen = batch
        if self.settings.update_share < 1:
            rows, counts_for, drawn = self._drawn(batch, prompts * rollouts, metrics)
            chosen = KVBatchMeta(
                keys=[batch.keys[row] for row in rows],
                tags=[batch.tags[row] for row in rows],
                partition_id=batch.partition_id,
                fields=batch.fields,
                extra_info=batch.extra_info,
            )
            counts = counts_for * factor * (drawn / (prompts * rollouts) if is_mean else 1.0)
            actor.ppo_mini_batch_size = drawn // rollouts
        if bool((counts == 1).all()):
            return super()._update_actor(batch, metrics=metrics)
        whole = bus_rows(chosen, ["advantages"])["advantages"]
        self._put_advantages(chosen, scaled_rows(whole, counts))
        try:
            super()._update_actor(chosen, metrics=metrics)
        finally:
            actor.ppo_mini_batch_size = prompts
        self._put_advantages(chosen, whole)
        return batch

    def _drawn(
        self, batch: KVBatchMeta, minibatch: int, metrics: dict[str, Any]
    ) -> tuple[list[int], Float[Tensor, " drawn"], int]:
        """Rows to update on, what each counts for, and how many are drawn of each minibatch."""
        rollouts, ranks = (
            self.config.actor_rollout_ref.rollout.n,
            max(self.actor_rollout_wg._dispatch_info["actor"]) + 1,
        )
        drawn = drawn_size(self.settings.update_share, minibatch, rollouts=rollouts, ranks=ranks)
        sizes = torch.tensor([self._gradient_sizes[key] for key in batch.keys], dtype=torch.float64)
        lengths = [tag["seq_len"] for tag in batch.tags]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((self.config.data.get("seed") or 0) + 1_000_003 * self.global_steps)
            rows, counts, noise = drawn_rows(sizes, lengths, minibatch=minibatch, drawn=drawn, ranks=ranks)
        metrics["poise/update_noise"] = noise
        return rows, counts, drawn

    def _put_advantages(self, batch: KVBatchMeta, advantages: Any) -> None:
        output = TensorDict({"advantages": advantages}, batch_size=len(batch))
        tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=output)
