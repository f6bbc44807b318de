"""A few overrides of `GRPOTrainer` by which TRL trains on poise's advantages, and nothing of the method.

Features come from the pass that gave the log-probabilities TRL trains with, found by object identity, so a
pass over a reference model or an adapter switched off is never taken for the sampling policy. Features, rewards and
prompts are gathered over all processes before siblings are paired; one process fits, and all receive its advantages.

Dimensions: N rollouts of the generation batch over all processes, B of this process, C completion columns.
"""

import dataclasses
import hashlib
import inspect
import logging
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast, gather_object
from jaxtyping import Bool, Float
from torch import Tensor, nn
from trl import GRPOConfig, GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

import poise
from poise.engines import options
from poise.engines.trl import contract
from poise.engines.trl import starting_checks as checks
from poise.engines.trl.checkpoints import CheckpointedTrainer
from poise.engines.trl.config import PoiseConfig
from poise.engines.trl.finite_steps import FILE, FiniteSteps
from poise.engines.trl.kept_rollouts import TOKENS_KEPT, Phases, columns_for_people, reward_parts
from poise.engines.trl.own_tokens import completion_text, prompt_key, token_masks
from poise.engines.trl.reward_scale import RewardScale
from poise.engines.trl.update_share import SIZES, drawn_minibatch, gradient_sizes
from poise.features.hidden_states import HiddenStateCapture, capture_hidden_states, checked_layers, decoder_blocks
from poise.features.rollout_features import (
    MEAN_ENTROPIES,
    Features,
    end_of_thinking_ids,
    reasoning_mask,
    score_norm_weights,
)
from poise.models.generation import completion_ends

logger = logging.getLogger(__name__)

BATCHES_BETWEEN_CHECKS = 50
"""Generation batches from one comparison between processes to the next; the first is compared."""


@dataclasses.dataclass(frozen=True)
class PolicyPass:
    """What one forward pass over this process's rollouts gave; entropies in nats at the sampling temperature."""

    logprobs: Float[Tensor, "B C"]
    entropies: Float[Tensor, "B C"]
    features: Features | None


class PoiseTrainer(CheckpointedTrainer):
    """A `trl.GRPOTrainer` whose advantages are rewards minus the baselines of `poise.OnlineBaseline`.

    Takes the arguments of `GRPOTrainer`, with a `PoiseConfig` as `args`.

    Attributes:
        baseline: The `poise.OnlineBaseline`; it learns in the main process, and a checkpoint holds its state.
        last_rollouts: The newest generation batch, one list of length N a column (`prompts`: text, or messages as JSON;
            `completions`, `completion_lengths`, `rewards`, `values`, `baselines`, `advantages`, `domains`, `weights`,
            `parts` and those of `columns_for_people`) and the `step` at which it was sampled; `None` before the first.
        last_step: The `poise.Step` of that batch, `None` likewise and where the baseline may not learn from the batch.
        finite_steps: Skips the steps whose numbers are not finite.

    Raises:
        TypeError: If `args` is not a `PoiseConfig`.
        ValueError: If the model or the data cannot be trained with these options, or a layer is not in the model.
    """

    # Open, as a list, only while a generation batch is scored: other passes are not looked at.
    _passes: list[PolicyPass] | None = None
    # Completions as generated, and the mask of the policy's own tokens, one list a row.
    _generated: tuple[list[list[int]], list[list[int]] | None] | None = None
    _rewards_per_func: Tensor | None = None
    _extra_forward_said = False
    _newest_logprobs: Tensor | None = None
    _batches = 0

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        *positional: Any,
        **named: Any,
    ) -> None:
        args = PoiseConfig() if args is None else args
        if not isinstance(args, PoiseConfig):
            raise TypeError(f"PoiseTrainer needs a PoiseConfig as args, got a {type(args).__name__}")
        signature = inspect.signature(GRPOTrainer.__init__)
        given = signature.bind(self, model, reward_funcs, args, *positional, **named).arguments
        environment = given.get("environment_factory") is not None
        checks.check_data_set(given.get("train_dataset"), args, environment=environment)
        super().__init__(model, reward_funcs, args, *positional, **named)
        self.eos_token_ids = completion_ends(self.model, self._tokenizer, args.generation_kwargs)
        if not args.use_vllm:
            self.generation_config.eos_token_id = self.eos_token_ids
        sampler = {} if args.use_vllm else self.generation_kwargs  # TRL makes them for its own sampler alone
        checks.look_at_model(self.accelerator.unwrap_model(self.model), self.ref_model, args, sampler)
        self.add_callback(checks.WholeGenerations())
        self.finite_steps = FiniteSteps(
            self.accelerator,
            Path(args.output_dir) / FILE,
            lambda skipped: self._metrics["train"]["poise/skipped_share"].append(skipped),
        )
        self.add_callback(self.finite_steps)
        self.phases = Phases(self._metrics["train"])
        preset = args.resolved_preset
        self.baseline = poise.OnlineBaseline(preset)
        self.last_rollouts: dict[str, Any] | None = None
        self.last_step: poise.Step | None = None
        self._needs_features = preset.needs_features
        self._needs_pass = args.needs_pass
        self._scalars = [name for name in preset.scalars if name not in MEAN_ENTROPIES]
        self._layers = self._checked_layers() if preset.needs_features else []
        self.reward_scale = RewardScale()
        self._end_of_thinking_ids = end_of_thinking_ids(self._tokenizer, args.end_of_thinking)
        if self.accelerator.is_main_process:
            if args.sources_of_bias:
                logger.warning("the policy gradient is not exactly unbiased: %s", "; ".join(args.sources_of_bias))
            else:
                logger.info(
                    "the policy gradient of the first minibatch is unbiased; in later ones it is, up to TRL's clipped "
                    "and masked ratios"
                )

    # The pass over the rollouts: hidden states, entropies and log-probabilities of the policy's own tokens.

    def _generate(self, prompts: list[Any]) -> Any:
        """TRL's completions; which of their tokens the policy sampled is kept."""
        with self.phases.timed("sampling", self.model.training):
            generated = super()._generate(prompts)
        contract.check_generated(generated, rows=len(prompts))
        self._generated = generated[1:3]
        return generated

    def _token_masks(self, columns: int) -> tuple[Bool[Tensor, "B C"], Bool[Tensor, "B C"]]:
        """Where the completions of the generation batch have a token, and where one of the policy's own."""
        assert self._generated is not None
        return token_masks(*self._generated, columns=columns, device=self.accelerator.device)

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """TRL's pass, watched while a generation batch is scored."""
        if self._passes is None or model is not self.model:
            outputs = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
            )
            self._newest_logprobs = outputs[0]
            return outputs
        kwargs["compute_entropy"] = True  # TRL's output head has computed it in any case
        tokens, own = self._token_masks(logits_to_keep)
        # TRL hides truncated completions from the pass itself where it is to leave them out of the loss.
        attention_mask = torch.cat([attention_mask[:, :-logits_to_keep], tokens.to(attention_mask)], dim=1)
        with self.phases.timed("features"), self._capture(input_ids, attention_mask, own) as capture:
            outputs = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
            )
        logprobs, entropies = outputs[:2]
        features = capture.features(entropies, scalars=self._scalars, ids=input_ids) if capture else None
        self._passes.append(PolicyPass(logprobs, entropies, features))
        return outputs

    def _capture(
        self, input_ids: Tensor, attention_mask: Tensor, own: Bool[Tensor, "B C"]
    ) -> AbstractContextManager[HiddenStateCapture | None]:
        """The hooks for one pass; none where the preset reads no hidden states."""
        if not self._needs_features:
            return nullcontext()
        prompt_mask, completion_mask = attention_mask.bool(), torch.zeros_like(attention_mask, dtype=torch.bool)
        prompt_mask[:, -own.shape[1] :], completion_mask[:, -own.shape[1] :] = False, own
        reasoning, _ = reasoning_mask(input_ids, completion_mask, end_of_thinking_ids=self._end_of_thinking_ids)
        return capture_hidden_states(
            self.accelerator.unwrap_model(self.model),
            prompt_mask,
            completion_mask,
            layers=self._layers,
            pool_tokens=self.args.pool_tokens,
            reasoning_mask=reasoning,
        )

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        """TRL's rewards, one column a reward function, gathered over processes; kept for the baseline."""
        with self.phases.timed("rewards", self.model.training):
            rewards_per_func: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._rewards_per_func = rewards_per_func
        return rewards_per_func

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's generation batch with poise's advantages; evaluation is left as it is."""
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)
        self._passes = []
        whole = self.environment_factories is not None
        keys = [prompt_key(row, whole=whole) for row in inputs]  # TRL lets `rollout_func` write into rows
        try:
            scored: dict[str, Any] = super()._generate_and_score_completions(inputs)
            contract.check_scored(scored, self._logs)
            if self.args.update_share < 1 and "pixel_values" in scored:
                raise ValueError("update_share below 1 cannot draw rollouts that have images: it must be 1")
            behaviour = self._behaviour_pass(scored) if self._needs_pass else None
        finally:
            self._passes = None
        needs_weights = self.baseline.preset.weighted or self.args.update_share < 1
        _, own = self._token_masks(scored["completion_ids"].shape[1])
        weights = self._weights(behaviour, own) if behaviour is not None and needs_weights else None
        self.see_rollouts(scored)
        advantages = self._advantages(inputs, keys, scored, own, behaviour, weights)
        first = self.accelerator.process_index * len(inputs)
        scored["advantages"] = advantages[first : first + len(inputs)].to(scored["advantages"])
        if self.args.update_share < 1:
            in_loss = scored["completion_mask"].any(dim=1)
            scored[SIZES] = gradient_sizes(scored["advantages"], weights) * in_loss
        shown = self._logs["advantages"]
        for _ in range(len(advantages)):
            shown.pop()
        shown.extend(advantages.tolist())
        return scored

    def _behaviour_pass(self, scored: dict[str, Any]) -> PolicyPass:
        """The pass whose log-probabilities TRL trains with; one more pass where TRL needed none."""
        assert self._passes is not None
        old_logprobs = scored.get("old_per_token_logps")
        found = [each for each in self._passes if each.logprobs is old_logprobs]
        self._metrics["train"]["poise/extra_forward"].append(0.0 if found else 1.0)
        if found:
            return found[0]
        if self.args.poise_feature_pass == "require_free":
            raise ValueError("poise_feature_pass='require_free', and TRL made no forward pass over these rollouts")
        if not self._extra_forward_said:
            logger.warning(
                "features cost one more forward pass per generation batch: TRL makes none when steps_per_generation "
                "divides gradient_accumulation_steps and vLLM's importance sampling is not corrected"
            )
            self._extra_forward_said = True
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            self._get_per_token_logps_and_entropies(
                self.model,
                torch.cat([scored["prompt_ids"], scored["completion_ids"]], dim=1),
                torch.cat([scored["prompt_mask"], scored["completion_mask"]], dim=1),
                scored["completion_ids"].shape[1],
                batch_size=self.args.per_device_train_batch_size,
                **{name: scored[name] for name in contract.pass_inputs() if name in scored},  # pictures
            )
        return self._passes[-1]

    def see_rollouts(self, scored: dict[str, Any]) -> None:
        """Look at TRL's generation batch before its baselines are made; for subclasses."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's loss of a minibatch, or of the rollouts that are drawn to stand for it, looked at."""
        if self.model.training and SIZES in inputs:
            inputs, noise = drawn_minibatch(inputs, self.args.update_share)
            if noise is not None:
                self._metrics["train"]["poise/update_noise"].append(noise)
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        logprobs, self._newest_logprobs = self._newest_logprobs, None
        if self.model.training and logprobs is not None:
            self.finite_steps.see_loss(loss, inputs, logprobs)
        return loss

    # The baseline: everything gathered, one step in the main process, advantages for all.

    def _advantages(
        self,
        inputs: list[dict[str, Any]],
        keys: list[str],
        scored: dict[str, Any],
        own: Bool[Tensor, "B C"],
        behaviour: PolicyPass | None,
        weights: Float[Tensor, "B"] | None,
    ) -> Float[Tensor, "N"]:
        """Reward minus baseline for all N rollouts, the same in every process."""
        assert self._rewards_per_func is not None
        rewards_per_func = self._rewards_per_func
        rewards = (rewards_per_func * self.reward_weights.to(rewards_per_func.device)).nansum(dim=1)
        rewards[rewards_per_func.isnan().all(dim=1)] = torch.nan  # no reward function could grade it
        own_lengths = self.accelerator.gather(own.sum(dim=1))
        rewards[own_lengths == 0] = torch.nan  # nothing that the policy did earned it
        features = all_weights = None
        if behaviour is not None and behaviour.features is not None:
            features = behaviour.features.mapped(lambda part: self.accelerator.gather(part).cpu())
        if weights is not None and self.baseline.preset.weighted:
            all_weights = self.accelerator.gather(weights).cpu()
        prompts = gather_object(keys)
        domains = gather_object([each.get(self.args.domain_column) for each in inputs])
        self._count_tokens(scored, own, own_lengths)
        assert self._generated is not None
        told = columns_for_people(
            inputs,
            self._generated[0],
            tokenizer=self._tokenizer,
            ends=self.eos_token_ids,
            entropies=None if behaviour is None else behaviour.entropies,
            most_tokens=TOKENS_KEPT // self.accelerator.num_processes,
        )
        advantages = torch.zeros_like(rewards)
        if self.accelerator.is_main_process:
            rewards = rewards.cpu().double()
            step = None
            if self.finite_steps.see_batch(rewards, features, all_weights):
                named = None if all(domain is None for domain in domains) else [str(domain) for domain in domains]
                with self.phases.timed("baseline"):
                    step = self.baseline.step(features, rewards, prompts=prompts, domains=named, weights=all_weights)
                for name, number in step.metrics.items():
                    self._metrics["train"][name].append(number)
            unknown = torch.full_like(rewards, torch.nan)  # a batch that nothing may be learned from
            columns = ("values", "baselines", "advantages")
            made = {name: unknown if step is None else getattr(step, name) for name in columns}
            if self.args.scale_rewards == "batch":
                self._metrics["train"]["poise/reward_scale"].append(self.reward_scale.divisor)
                made["advantages"] = made["advantages"] / self.reward_scale.divisor
                if step is not None:
                    self.reward_scale.add(rewards)
            self.last_step = step
            self.last_rollouts = {
                "step": self.state.global_step,
                "prompts": prompts,
                "completions": [completion_text(each) for each in list(self._logs["completion"])[-len(rewards) :]],
                "completion_lengths": own_lengths.tolist(),
                "rewards": rewards.tolist(),
                **{name: column.tolist() for name, column in made.items()},
                "domains": domains,
                "weights": [None] * len(rewards) if all_weights is None else all_weights.tolist(),
                "parts": reward_parts(self.reward_func_names, rewards_per_func, len(rewards)),
                **told,
            }
            advantages = made["advantages"].to(advantages)
        received: Tensor = broadcast(advantages, from_process=0)
        self._check_agreement(received)
        return received

    def _count_tokens(self, scored: dict[str, Any], own: Bool[Tensor, "B C"], lengths: Tensor) -> None:
        """Metrics of the policy's own tokens, over all processes."""
        if "tool_mask" in scored:
            self._metrics["train"]["poise/no_own_tokens_share"].append((lengths == 0).float().mean().item())
        ratio = scored.get("importance_sampling_ratio")
        if ratio is not None:
            masked = self.accelerator.gather(((ratio == 0) & own).sum()).sum()
            self._metrics["train"]["poise/masked_share"].append(float(masked / lengths.sum().clamp(min=1)))

    def _weights(self, behaviour: PolicyPass, own: Bool[Tensor, "B C"]) -> Float[Tensor, "B"]:
        """This process's score-norm weights; NaN where a log-probability or an entropy is not finite."""
        finite = ((behaviour.logprobs.isfinite() & behaviour.entropies.isfinite()) | ~own).all(dim=1)
        weights = score_norm_weights(
            behaviour.logprobs.float(),
            behaviour.entropies.float(),
            own & finite[:, None],
            loss_normalization=self.args.loss_normalization,
        )
        return torch.where(finite, weights, torch.nan)

    def _check_agreement(self, advantages: Float[Tensor, "N"]) -> None:
        """Now and then, see that all processes train on the same advantages: by their digests.

        Raises:
            RuntimeError: If they do not.
        """
        if self._batches % BATCHES_BETWEEN_CHECKS == 0:
            digests = gather_object([hashlib.sha256(advantages.cpu().numpy().tobytes()).hexdigest()])
            if len(set(digests)) > 1:
                raise RuntimeError(
                    f"the {len(digests)} processes have received different advantages at step "
                    f"{self.state.global_step}: their connection is not to be trusted"
                )
        self._batches += 1

    def fitted_for(self) -> dict[str, Any]:
        """What a saved baseline is of use for: another model or other features would be read as if they were these."""
        config = self.accelerator.unwrap_model(self.model).config
        if not self._needs_features:
            return options.model_shape(config)
        return options.fitted_for(
            config,
            layers=self._layers,
            pool_tokens=self.args.pool_tokens,
            end_of_thinking=self.args.end_of_thinking,
            normalization=self.args.loss_normalization,
        )

    def _checked_layers(self) -> list[int]:
        """The decoder layers to read; by default the one at 0.6 of the depth."""
        _, blocks = decoder_blocks(self.accelerator.unwrap_model(self.model))
        return checked_layers(self.args.layers, depth=len(blocks))
