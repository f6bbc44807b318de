"""The driver: verl's PPO trainer, whose advantages are rewards minus the baselines of `poise.OnlineBaseline`.

The rule: the trainer is blind to the method. It asks for features with the pass that verl makes over old log-probs,
finds the rollouts among verl's rows, hands over features, rewards, prompts and domains, and broadcasts the advantages.

The state of the baseline lies beside verl's own in `global_step_N`; it is written before verl marks a checkpoint as
complete, and read before any GPU is taken.
"""

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import ray
import torch
import transfer_queue as tq
from jaxtyping import Float, Num
from omegaconf import DictConfig
from tensordict import TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.core_algos import register_adv_est
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path
from verl.utils.config import omega_conf_to_dataclass

import poise
from poise.batch import prompt_id
from poise.engines.verl.reading import FIELDS, READING
from poise.engines.verl.rollouts import RolloutRows, rollout_rows
from poise.engines.verl.settings import checked_settings, loss_normalization
from poise.engines.verl.worker import PoiseActorRolloutRefWorker
from poise.features.hidden_states import checked_layers
from poise.features.rollout_features import Features, end_of_thinking_ids

logger = logging.getLogger(__name__)

ACTOR_ROLES = (Role.Actor, Role.ActorRollout, Role.ActorRolloutRef)


class PoiseTrainer(PPOTrainer):  # type: ignore[misc]
    """What poise adds to either of verl's trainers.

    Attributes:
        baseline: The `poise.OnlineBaseline`; a checkpoint holds its state.
        last_step: The `poise.Step` of the newest batch, `None` before.

    Raises:
        ValueError: Before workers start, if poise cannot serve the configuration, the model or the checkpoint.
    """

    def __init__(self, config: DictConfig) -> None:
        self.settings = checked_settings(config)
        self.baseline = poise.OnlineBaseline(self.settings.resolved_preset)
        self.last_step: poise.Step | None = None
        super().__init__(config)

    # Before workers start.

    def _init_tokenizer(self) -> None:
        """verl's tokenizer; then everything that can only be told with the model's configuration."""
        super()._init_tokenizer()
        if self.processor is not None:
            raise ValueError(
                f"poise trains on text alone, and {self.config.actor_rollout_ref.model.path} has a processor for images"
            )
        model = omega_conf_to_dataclass(self.config.actor_rollout_ref.model).hf_config.get_text_config()
        self._layers = checked_layers(self.settings.layers, depth=model.num_hidden_layers)
        self._fitted_for = {
            "model_type": model.model_type,
            "hidden_size": model.hidden_size,
            "num_hidden_layers": model.num_hidden_layers,
            "layers": self._layers,
            "pool_tokens": self.settings.pool_tokens,
            "end_of_thinking": self.settings.end_of_thinking,
            "weights_divided_by_length": loss_normalization(self.config) == "sequence",
        }
        self._restore_baseline()

    def _init_dataloader(self) -> None:
        """verl's data; it has to name domains."""
        super()._init_dataloader()
        columns, wanted = getattr(self.train_dataset, "dataframe", None), self.settings.domain_column
        columns = getattr(columns, "column_names", None)  # a data set of the user's own may be made otherwise
        if columns is not None and wanted not in columns:
            raise ValueError(
                f"the data set needs the column poise.domain_column={wanted!r}, got {', '.join(sorted(columns))}"
            )

    def _restore_baseline(self) -> None:
        """Continue the baseline of the checkpoint that verl will load; one of something else is refused."""
        self._restored_step, folder = 0, self._checkpoint_to_load()
        if folder is None:
            return
        self._restored_step = int(folder.name.removeprefix("global_step_"))
        if all((folder / name).exists() for name in ("poise.safetensors", "poise.json")):
            self.baseline.restore(folder, fitted_for=self._what_it_is_for())
        else:
            logger.warning(
                "%s holds no poise.safetensors and poise.json: the baseline starts with an empty window", folder
            )

    def _checkpoint_to_load(self) -> Path | None:
        """The folder from which verl resumes; `None` where it starts afresh."""
        trainer = self.config.trainer
        if trainer.resume_mode == "disable":
            return None
        if trainer.resume_mode == "resume_path":
            return Path(trainer.resume_from_path).absolute()
        latest = find_latest_ckpt_path(str(Path(trainer.default_local_dir).absolute()))
        return None if latest is None else Path(latest)

    def _what_it_is_for(self) -> dict[str, Any]:
        """What a saved baseline is of use for; nothing in particular where it reads no hidden states."""
        return self._fitted_for if self.baseline.preset.needs_features else {}

    def _init_resource_pool_mgr(self) -> None:
        """verl's roles, the actor with poise's engine in it."""
        super()._init_resource_pool_mgr()
        for role in ACTOR_ROLES:
            if role in self.role_worker_mapping:
                self.role_worker_mapping[role] = ray.remote(PoiseActorRolloutRefWorker)

    # A step.

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        """verl's pass over old log-probs, with a reading of features in it."""
        if self.settings.needs_pass:
            batch.extra_info[READING] = {
                "layers": self._layers,
                "pool_tokens": self.settings.pool_tokens,
                "end_of_thinking_ids": end_of_thinking_ids(self.tokenizer, self.settings.end_of_thinking),
                "loss_normalization": loss_normalization(self.config),
            }
        return without_reading(super()._compute_old_log_prob(batch, metrics=metrics))

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        """verl's rewards and corrections; then rewards minus baselines in the place of its advantages."""
        batch = super()._compute_advantage(batch, metrics=metrics)
        rewards = "token_level_rewards" if self.config.algorithm.use_kl_in_reward else "rm_scores"
        fields = [rewards, "response_mask", *(FIELDS if self.settings.needs_pass else [])]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        rows = rollout_rows(batch.keys, batch.tags)
        prompts, domains = self._prompts_and_domains(rows, batch)
        advantages = self._advantages(rows, data, row_sums(data[rewards]), prompts, domains, metrics)
        spread = on_sampled_tokens(rows.repeated(advantages), data["response_mask"])
        output = TensorDict({"advantages": spread, "returns": spread}, batch_size=len(batch))
        return without_reading(tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=output))

    def _prompts_and_domains(self, rows: RolloutRows, batch: KVBatchMeta) -> tuple[list[str], list[str]]:
        """For every rollout the prompt, the same string whenever it is drawn, and the name of its domain."""
        row_of_uid = dict(zip(rows.uids, rows.last_rows, strict=True))  # one of each group is asked
        told = tq.kv_batch_get(
            keys=[batch.keys[row] for row in row_of_uid.values()],
            partition_id=batch.partition_id,
            select_fields=["raw_prompt", self.settings.domain_column],
        )
        prompt_of = dict(zip(row_of_uid, map(prompt_id, told["raw_prompt"]), strict=True))
        domain_of: dict[str, str] = {}
        for prompt, domain in zip(prompt_of.values(), told[self.settings.domain_column], strict=True):
            domain_of.setdefault(prompt, str(domain))  # sources may share a prompt; it counts to one of them
        prompts = [prompt_of[uid] for uid in rows.uids]
        return prompts, [domain_of[prompt] for prompt in prompts]

    def _advantages(
        self,
        rows: RolloutRows,
        data: TensorDict,
        rewards: Float[Tensor, " rows"],
        prompts: list[str],
        domains: list[str],
        metrics: dict[str, Any],
    ) -> Float[Tensor, " rollouts"]:
        """Reward minus baseline of every rollout; 0 for one whose siblings failed, where only siblings tell."""
        siblings, needed = Counter(prompts), 2 if self.baseline.preset.needs_siblings else 1
        served = [rollout for rollout, prompt in enumerate(prompts) if siblings[prompt] >= needed]
        last = [rows.last_rows[rollout] for rollout in served]
        features = weights = None
        if self.settings.needs_pass:
            prompt, completion, entropies, missing = (stacked(data[name])[last] for name in FIELDS[:4])
            features = Features(prompt, completion, entropies, missing.bool())
            weights = rows.summed(stacked(data[FIELDS[4]])[:, 0])[served]  # every output receives gradient
        step = self.baseline.step(
            features,
            rewards[last],
            prompts=[prompts[rollout] for rollout in served],
            domains=[domains[rollout] for rollout in served],
            weights=weights,
        )
        metrics.update(step.metrics)
        metrics["poise/alone_share"] = 1 - len(served) / len(prompts)
        self.last_step = step
        advantages = torch.zeros(len(prompts), dtype=torch.float64)
        advantages[served] = step.advantages
        return advantages

    # Checkpoints.

    def _save_checkpoint(self) -> None:
        """The baseline's state, then verl's checkpoint and its marker of a complete one."""
        folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
        folder.mkdir(parents=True, exist_ok=True)
        self.baseline.save(folder, fitted_for=self._what_it_is_for())
        super()._save_checkpoint()

    def _load_checkpoint(self) -> None:
        """verl's checkpoint, of the step whose baseline was restored."""
        super()._load_checkpoint()
        if self.global_steps != self._restored_step:
            raise RuntimeError(
                f"the baseline was restored for step {self._restored_step} and verl resumes at {self.global_steps}: "
                "its way of choosing a checkpoint has changed"
            )


class PoiseTrainerSync(PoiseTrainer, PPOTrainerSync):  # type: ignore[misc]
    """verl's synchronous trainer with poise's advantages."""


class PoiseTrainerColocateAsync(PoiseTrainer, PPOTrainerColocateAsync):  # type: ignore[misc]
    """verl's trainer that generates ahead on the same GPUs, with poise's advantages."""


TRAINERS = {"sync": PoiseTrainerSync, "colocate_async": PoiseTrainerColocateAsync}
"""The trainer for each `trainer.v1.trainer_mode`."""


@register_adv_est("poise")  # type: ignore[untyped-decorator]
def no_advantages(token_level_rewards: Tensor, response_mask: Tensor, **named: Any) -> tuple[Tensor, Tensor]:
    """Fill the place of an estimator in verl, which knows no features; `_compute_advantage` writes over it."""
    nothing = torch.zeros_like(token_level_rewards)
    return nothing, nothing


def without_reading(batch: KVBatchMeta) -> KVBatchMeta:
    """The batch for later passes: none of them reads features again, or is sent those that were read."""
    (batch.extra_info or {}).pop(READING, None)
    if batch.fields is not None:
        batch.fields = [name for name in batch.fields if name not in FIELDS]
    return batch


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
