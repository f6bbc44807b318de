"""verl's PPO trainer, whose advantages are rewards minus the baselines of `poise.OnlineBaseline`.

The trainer is blind to the method. It asks for features with the pass that verl makes over old log-probs,
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
from jaxtyping import Float
from omegaconf import DictConfig, open_dict
from tensordict import TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.core_algos import register_adv_est
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path
from verl.utils.config import omega_conf_to_dataclass

import poise
from poise.batch import prompt_id
from poise.engines.options import fitted_for
from poise.engines.verl.bus_rows import (
    bus_rows,
    mean_rewards,
    on_sampled_tokens,
    raised_share,
    row_sums,
    stacked,
)
from poise.engines.verl.reading import FIELDS, READING
from poise.engines.verl.records import RunRecords
from poise.engines.verl.rollouts import RolloutRows, rollout_rows
from poise.engines.verl.settings import checked_settings, loss_normalization
from poise.engines.verl.update import PoiseUpdate
from poise.engines.verl.worker import PoiseActorRolloutRefWorker, PoiseDetachActorWorker
from poise.features.hidden_states import checked_layers
from poise.features.rollout_features import Features, end_of_thinking_ids
from poise.tasks.embedded import THINK

logger = logging.getLogger(__name__)

ACTOR_ROLES = (Role.Actor, Role.ActorRollout, Role.ActorRolloutRef)


class PoiseTrainer(PoiseUpdate):
    """What poise adds to each of verl's trainers.

    Attributes:
        baseline: The `poise.OnlineBaseline`; a checkpoint holds its state.
        last_step: The `poise.Step` of the newest batch, `None` before.

    Raises:
        ValueError: Before workers start, if poise cannot serve the configuration, the model or the checkpoint.
    """

    actor_worker: type = PoiseActorRolloutRefWorker

    def __init__(self, config: DictConfig) -> None:
        self.settings = checked_settings(config)
        self.baseline = poise.OnlineBaseline(self.settings.resolved_preset)
        self.last_step: poise.Step | None = None
        self._records: RunRecords | None = None
        super().__init__(config)

    # Before workers start.

    def _init_tokenizer(self) -> None:
        """verl's tokenizer; then everything that can only be told with the model's configuration."""
        super()._init_tokenizer()
        if self.processor is not None:
            self._leave_images_out()
        self._tell_reward_how_prompts_end()
        model = omega_conf_to_dataclass(self.config.actor_rollout_ref.model).hf_config
        depth = model.get_text_config().num_hidden_layers
        self._layers = checked_layers(self.settings.layers, depth=depth)
        self._fitted_for = fitted_for(
            model,
            layers=self._layers,
            pool_tokens=self.settings.pool_tokens,
            end_of_thinking=self.settings.end_of_thinking,
            normalization=loss_normalization(self.config),
        )
        self._restore_baseline()

    def _leave_images_out(self) -> None:
        """Let all processes load the tokenizer alone: verl shows images to a model that has a processor."""
        folder = Path(self.config.trainer.default_local_dir).absolute() / "tokenizer"
        self.tokenizer.save_pretrained(folder)
        with open_dict(self.config):
            self.config.actor_rollout_ref.model.tokenizer_path = str(folder)
        super()._init_tokenizer()
        if self.processor is not None:
            raise ValueError(
                "poise trains on text alone, and the processor of "
                f"{self.config.actor_rollout_ref.model.path} cannot be left out"
            )

    def _tell_reward_how_prompts_end(self) -> None:
        """A chat template may open the thinking; poise's reward function takes that for a part of the completion."""
        function = self.config.reward.custom_reward_function
        kwargs = function.get("reward_kwargs") or {}
        chosen = (kwargs.get("poise_function") or [function.path])[0]
        if chosen != "pkg://poise.engines.verl.rewards" or "opening" in kwargs or not self.tokenizer.chat_template:
            return
        options = dict(self.config.data.get("apply_chat_template_kwargs") or {})
        asked = [{"role": "user", "content": "?"}]
        prompt = self.tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False, **options)
        if prompt.rstrip().endswith(THINK):
            with open_dict(self.config):
                function.reward_kwargs = {**kwargs, "opening": THINK}

    def _init_dataloader(self) -> None:
        """verl's data, text alone; it has to name domains."""
        super()._init_dataloader()
        columns, wanted = list(self.train_dataset[0]), self.settings.domain_column  # of a data set of any class
        if wanted not in columns:
            raise ValueError(
                f"the data set needs the column poise.domain_column={wanted!r}, got {', '.join(sorted(columns))}"
            )

    def _restore_baseline(self) -> None:
        """Continue the baseline of the checkpoint that verl will load; one of something else is refused."""
        self._restored_step, folder = 0, self._checkpoint_to_load()
        run_folder = Path(self.config.trainer.default_local_dir).absolute()
        if folder is None:
            self._records = RunRecords(run_folder, step=0)
            return
        self._restored_step = int(folder.name.removeprefix("global_step_"))
        self._records = RunRecords(run_folder, step=self._restored_step)
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
                self.role_worker_mapping[role] = ray.remote(self.actor_worker)

    def _setup(self) -> None:
        """verl's workers; a model that lets one rollout into its sibling's features is refused."""
        super()._setup()
        preset = self.baseline.preset
        if preset.needs_features and preset.reads_siblings:
            leaks = [sentence for sentence in self.actor_rollout_wg.leak_sentence() if sentence is not None]
            if leaks:
                raise ValueError(leaks[0].replace("padded rows", "actor_rollout_ref.model.use_remove_padding=false"))

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
        fields = [rewards, "response_mask", "extra_fields", *(FIELDS if self.settings.needs_pass else [])]
        data = bus_rows(batch, fields)
        rows = rollout_rows(batch.keys, batch.tags)
        prompts, domains = self._prompts_and_domains(rows, batch)
        rewards_of_rows = row_sums(data[rewards])
        advantages = rows.repeated(self._baseline_step(rows, data, rewards_of_rows, prompts, domains, metrics, batch))
        wanted = self.config.data.train_batch_size // self.parameter_sync_step * self.config.actor_rollout_ref.rollout.n
        metrics["poise/lost_share"] = max(0.0, 1 - len(rows.uids) / wanted)
        if self.settings.update_share < 1:
            sizes = advantages.abs() * stacked(data[FIELDS[4]])[:, 0].double().nan_to_num(posinf=0.0).sqrt()
            self._gradient_sizes = dict(zip(batch.keys, sizes.tolist(), strict=True))
        spread = on_sampled_tokens(advantages, data["response_mask"])
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

    def _baseline_step(
        self,
        rows: RolloutRows,
        data: TensorDict,
        rewards: Float[Tensor, " rows"],
        prompts: list[str],
        domains: list[str],
        metrics: dict[str, Any],
        batch: KVBatchMeta,
    ) -> Float[Tensor, " rollouts"]:
        """Reward minus baseline of every rollout; 0 for one whose siblings failed, where only siblings tell.

        A rollout whose reward is infinite, or of which something not finite was read, is ungradable.
        """
        siblings, needed = Counter(prompts), 2 if self.baseline.preset.needs_siblings else 1
        served = [rollout for rollout, prompt in enumerate(prompts) if siblings[prompt] >= needed]
        last = [rows.last_rows[rollout] for rollout in served]
        rewards = rewards[last]
        unusable = rewards.isinf()
        features = weights = None
        if self.settings.needs_pass:
            read = [stacked(data[name])[last] for name in FIELDS[:4]]
            weights = rows.summed(stacked(data[FIELDS[4]])[:, 0].double())[served]  # every output receives gradient
            finite = torch.stack([*(part.isfinite().all(dim=1) for part in read), weights.isfinite()])
            unusable |= ~finite.all(dim=0)
            prompt, completion, entropies, missing = (
                torch.where(unusable[:, None].to(part.device), 0, part) for part in read
            )
            features = Features(prompt, completion, entropies, missing.bool())
            weights = torch.where(unusable, 0.0, weights)
        rewards = torch.where(unusable, torch.nan, rewards)
        prompts_served, domains_served = ([each[rollout] for rollout in served] for each in (prompts, domains))
        step = self.baseline.step(features, rewards, prompts=prompts_served, domains=domains_served, weights=weights)
        metrics.update(step.metrics)
        metrics["poise/alone_share"] = 1 - len(served) / max(1, len(prompts))
        metrics["poise/nonfinite_share"] = float(unusable.double().mean())
        metrics["poise/raised_share"] = raised_share(data, last)
        metrics.update(mean_rewards(rewards, domains_served))
        self.last_step = step
        if self.settings.keep_rollouts:
            self._keep_rollouts(last, rewards, prompts_served, domains_served, batch)
        advantages = torch.zeros(len(prompts), dtype=torch.float64)
        advantages[served] = step.advantages
        return advantages

    def _keep_rollouts(
        self,
        last: list[int],
        rewards: Float[Tensor, " served"],
        prompts: list[str],
        domains: list[str],
        batch: KVBatchMeta,
    ) -> None:
        """Take the rollouts of this update for `rollouts/`, as text."""
        assert self._records is not None
        assert self.last_step is not None
        keys = [batch.keys[row] for row in last]
        told = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=["prompts", "responses"])
        texts = {name: self.tokenizer.batch_decode([row.tolist() for row in told[name].unbind()]) for name in told}
        made = {name: getattr(self.last_step, name).tolist() for name in ("values", "baselines", "advantages")}
        self._records.keep(
            {
                "prompts": texts["prompts"],
                "completions": texts["responses"],
                "domains": domains,
                "rewards": rewards.tolist(),
                **made,
            }
        )

    # Metrics.

    def _compute_metrics(
        self, batch: KVBatchMeta, metrics: dict[str, Any], timing_raw: dict[str, float], *rest: Any, **named: Any
    ) -> None:
        """verl's metrics; then the step's line in `metrics.jsonl`."""
        super()._compute_metrics(batch, metrics, timing_raw, *rest, **named)
        rollouts = len(rollout_rows(batch.keys, batch.tags).uids)
        assert self._records is not None
        assert self.last_step is not None
        self._records.write(
            self.global_steps,
            metrics,
            seconds=timing_raw.get("step", 0.0),
            rollouts=rollouts,
            in_charge=self.last_step.in_charge,
        )

    def _val_metrics_update(
        self,
        data_sources: Any,
        sample_uids: Any,
        reward_extra_infos_dict: dict[str, list[Any]],
        *rest: Any,
        **named: Any,
    ) -> dict[str, float]:
        """verl's validation metrics; what could not be graded is wrong, as what failed is to verl, and counted."""
        infos, failed = dict(reward_extra_infos_dict), 0.0
        for name in ("acc", "reward", "score"):
            column = infos.get(name, [])
            ungradable = [value is not None and value != value for value in column]
            failed = max(failed, sum(ungradable) / max(1, len(column)))
            infos[name] = [0.0 if bad else value for bad, value in zip(ungradable, column, strict=True)]
        infos = {name: column for name, column in infos.items() if column}
        found: dict[str, float] = super()._val_metrics_update(data_sources, sample_uids, infos, *rest, **named)
        return found | {"poise/validation_ungradable_share": failed}

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


class PoiseTrainerSeparateAsync(PoiseTrainer, PPOTrainerSeparateAsync):  # type: ignore[misc]
    """verl's trainer that generates on GPUs of its own, with poise's advantages; one baseline step a local update."""

    actor_worker = PoiseDetachActorWorker


TRAINERS = {
    "sync": PoiseTrainerSync,
    "colocate_async": PoiseTrainerColocateAsync,
    "separate_async": PoiseTrainerSeparateAsync,
}
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
