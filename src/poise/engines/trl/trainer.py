"""Where poise meets TRL's training loop: a few overrides of `GRPOTrainer`, and nothing of the method.

The rule: features come from the pass that gave the log-probabilities TRL trains with, found by object identity, so a
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
from jaxtyping import Float
from torch import Tensor, nn
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

import poise
from poise.batch import prompt_id
from poise.engines.trl.checkpoints import CheckpointedTrainer
from poise.engines.trl.config import PoiseConfig
from poise.engines.trl.finite_steps import FILE, FiniteSteps
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
            `completions`, `completion_lengths`, `rewards`, `values`, `baselines`, `advantages`, `domains`) and the
            `step` at which it was sampled; `None` before the first batch and outside the main process.
        last_step: The `poise.Step` of that batch, `None` likewise and where the baseline may not learn from the batch.
        finite_steps: Skips the steps whose numbers are not finite.

    Raises:
        TypeError: If `args` is not a `PoiseConfig`.
        ValueError: If tools, environments or images are asked for, or a layer the model does not have.
    """

    # Open, as a list, only while a generation batch is scored: other passes are not looked at.
    _passes: list[PolicyPass] | None = None
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
        arguments = signature.bind(self, model, reward_funcs, args, *positional, **named).arguments
        for name in ("tools", "environment_factory"):
            if arguments.get(name):
                raise ValueError(f"poise reads completions that the policy sampled whole: {name} is not supported")
        check_data_set(arguments.get("train_dataset"), args)
        super().__init__(model, reward_funcs, args, *positional, **named)
        self.eos_token_ids = completion_ends(self.model, self._tokenizer, args.generation_kwargs)
        if not args.use_vllm:
            self.generation_config.eos_token_id = self.eos_token_ids
        self.add_callback(WholeGenerations())
        self.finite_steps = FiniteSteps(
            self.accelerator,
            Path(args.output_dir) / FILE,
            lambda skipped: self._metrics["train"]["poise/skipped_share"].append(skipped),
        )
        self.add_callback(self.finite_steps)
        preset = args.resolved_preset
        self.baseline = poise.OnlineBaseline(preset)
        self.last_rollouts: dict[str, Any] | None = None
        self.last_step: poise.Step | None = None
        self._needs_features = preset.needs_features
        self._needs_pass = args.needs_pass
        self._scalars = [name for name in preset.scalars if name not in MEAN_ENTROPIES]
        self._layers = self._checked_layers() if preset.needs_features else []
        self._end_of_thinking_ids = end_of_thinking_ids(self._tokenizer, args.end_of_thinking)
        if self.accelerator.is_main_process:
            if args.sources_of_bias:
                logger.warning("the policy gradient is not exactly unbiased: %s", "; ".join(args.sources_of_bias))
            else:
                logger.info(
                    "the policy gradient of the first minibatch is unbiased; in later ones it is, up to TRL's clipped "
                    "and masked ratios"
                )

    # The pass over the rollouts: hidden states, entropies and log-probabilities.

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
        with self._capture(input_ids, attention_mask, logits_to_keep) as capture:
            outputs = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
            )
        logprobs, entropies = outputs[:2]
        features = capture.features(entropies, scalars=self._scalars, ids=input_ids) if capture else None
        self._passes.append(PolicyPass(logprobs, entropies, features))
        return outputs

    def _capture(
        self, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int
    ) -> AbstractContextManager[HiddenStateCapture | None]:
        """The hooks for one pass; none where the preset reads no hidden states."""
        if not self._needs_features:
            return nullcontext()
        attended = attention_mask.bool()
        is_completion = torch.arange(input_ids.shape[1], device=input_ids.device) >= input_ids.shape[1] - logits_to_keep
        completion_mask = attended & is_completion
        reasoning, _ = reasoning_mask(input_ids, completion_mask, end_of_thinking_ids=self._end_of_thinking_ids)
        return capture_hidden_states(
            self.accelerator.unwrap_model(self.model),
            attended & ~is_completion,
            completion_mask,
            layers=self._layers,
            pool_tokens=self.args.pool_tokens,
            reasoning_mask=reasoning,
        )

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        """TRL's rewards, one column a reward function, gathered over processes; kept for the baseline."""
        rewards_per_func: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._rewards_per_func = rewards_per_func
        return rewards_per_func

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's generation batch with poise's advantages; evaluation is left as it is."""
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)
        self._passes = []
        try:
            scored: dict[str, Any] = super()._generate_and_score_completions(inputs)
            if "tool_mask" in scored:
                raise ValueError("poise reads completions that the policy sampled whole: env_mask is not supported")
            behaviour = self._behaviour_pass(scored) if self._needs_pass else None
        finally:
            self._passes = None
        needs_weights = self.baseline.preset.weighted or self.args.update_share < 1
        weights = self._weights(behaviour, scored) if behaviour is not None and needs_weights else None
        advantages = self._advantages(inputs, scored, behaviour, weights)
        first = self.accelerator.process_index * len(inputs)
        scored["advantages"] = advantages[first : first + len(inputs)].to(scored["advantages"])
        if self.args.update_share < 1:
            scored[SIZES] = gradient_sizes(scored["advantages"], weights)
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
            )
        return self._passes[-1]

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
        scored: dict[str, Any],
        behaviour: PolicyPass | None,
        weights: Float[Tensor, "B"] | None,
    ) -> Float[Tensor, "N"]:
        """Reward minus baseline for all N rollouts, the same in every process."""
        assert self._rewards_per_func is not None
        rewards_per_func = self._rewards_per_func
        rewards = (rewards_per_func * self.reward_weights.to(rewards_per_func.device)).nansum(dim=1)
        rewards[rewards_per_func.isnan().all(dim=1)] = torch.nan  # no reward function could grade it
        completion_mask = scored["completion_mask"].bool()
        features = all_weights = None
        if behaviour is not None and behaviour.features is not None:
            features = self._gathered_features(behaviour.features)
        if weights is not None and self.baseline.preset.weighted:
            all_weights = self.accelerator.gather(weights).cpu()
        prompts = gather_object([prompt_id(each["prompt"]) for each in inputs])
        domains = gather_object([each.get(self.args.domain_column) for each in inputs])
        completion_lengths = self.accelerator.gather(completion_mask.sum(dim=1))
        advantages = torch.zeros_like(rewards)
        if self.accelerator.is_main_process:
            rewards = rewards.cpu().double()
            step = None
            if self.finite_steps.see_batch(rewards, features, all_weights):
                step = self.baseline.step(
                    features,
                    rewards,
                    prompts=prompts,
                    domains=None if all(domain is None for domain in domains) else [str(domain) for domain in domains],
                    weights=all_weights,
                )
                for name, number in step.metrics.items():
                    self._metrics["train"][name].append(number)
            ratio = scored.get("importance_sampling_ratio")
            if ratio is not None:
                self._metrics["train"]["poise/masked_share"].append((ratio == 0).float().mean().item())
            unknown = torch.full_like(rewards, torch.nan)  # a batch that nothing may be learned from
            made = {
                name: unknown if step is None else getattr(step, name) for name in ("values", "baselines", "advantages")
            }
            self.last_step = step
            self.last_rollouts = {
                "step": self.state.global_step,
                "prompts": prompts,
                "completions": [completion_text(each) for each in list(self._logs["completion"])[-len(rewards) :]],
                "completion_lengths": completion_lengths.tolist(),
                "rewards": rewards.tolist(),
                **{name: column.tolist() for name, column in made.items()},
                "domains": domains,
            }
            advantages = made["advantages"].to(advantages)
        received: Tensor = broadcast(advantages, from_process=0)
        self._check_agreement(received)
        return received

    def _weights(self, behaviour: PolicyPass, scored: dict[str, Any]) -> Float[Tensor, "B"]:
        """This process's score-norm weights; NaN where a log-probability or an entropy is not finite."""
        completion_mask = scored["completion_mask"].bool()
        finite = ((behaviour.logprobs.isfinite() & behaviour.entropies.isfinite()) | ~completion_mask).all(dim=1)
        weights = score_norm_weights(
            behaviour.logprobs.float(),
            behaviour.entropies.float(),
            completion_mask & finite[:, None],
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

    def _gathered_features(self, features: Features) -> Features:
        """The features of all N rollouts, in the order of the rewards."""
        return features.mapped(lambda part: self.accelerator.gather(part).cpu())

    def fitted_for(self) -> dict[str, Any]:
        """What a saved baseline is of use for: another model or other features would be read as if they were these."""
        config = self.accelerator.unwrap_model(self.model).config.get_text_config()
        shape = {name: getattr(config, name) for name in ("model_type", "hidden_size", "num_hidden_layers")}
        if not self._needs_features:
            return shape
        return shape | {
            "layers": self._layers,
            "pool_tokens": self.args.pool_tokens,
            "end_of_thinking": self.args.end_of_thinking,
            "weights_divided_by_length": self.args.loss_normalization == "sequence",
        }

    # What the model and its tokenizer have, and what a baseline is of use for.

    def _checked_layers(self) -> list[int]:
        """The decoder layers to read; by default the one at 0.6 of the depth."""
        _, blocks = decoder_blocks(self.accelerator.unwrap_model(self.model))
        return checked_layers(self.args.layers, depth=len(blocks))


def check_data_set(data: Any, args: PoiseConfig) -> None:
    """Refuse data that cannot be trained on; make generation batches smaller where the data set has too few prompts.

    Raises:
        ValueError: If the data set has images, no prompts, or too few prompts for one generation batch.
    """
    columns = getattr(data, "column_names", None) or []
    for name in ("image", "images"):
        if name in columns:
            raise ValueError(f"poise trains on text alone, and the data set has a column {name!r}")
    if columns and "prompt" not in columns:
        raise ValueError(f"the data set needs a column 'prompt', got {', '.join(sorted(columns))}")
    if not hasattr(data, "__len__"):
        return
    rollouts, group_size = args.generation_batch_size or 0, args.num_generations or 1  # TRL has filled them in
    if rollouts > len(data) * group_size and args.chose_steps_per_generation and args.poise_feature_pass == "auto":
        half = rollouts // 2  # one minibatch in place of two
        if half % group_size == 0 and half <= len(data) * group_size:
            args.steps_per_generation, args.generation_batch_size = args.gradient_accumulation_steps, half
            rollouts = half
            logger.warning(
                "the data set has %d prompts, too few for two minibatches a generation batch: steps_per_generation is "
                "%d instead of twice that, and the features cost one more forward pass",
                len(data),
                args.steps_per_generation,
            )
    if rollouts > len(data) * group_size:
        raise ValueError(
            f"a generation batch holds {rollouts // group_size} prompts, and the data set needs as many or more, "
            f"got {len(data)}"
        )


class WholeGenerations(TrainerCallback):  # type: ignore[misc]
    """Rounds `save_steps` where its number of steps is known only now: a share of so many epochs."""

    def on_train_begin(self, args: PoiseConfig, state: Any, control: Any, **named: Any) -> None:
        if args.save_steps < 1:
            state.save_steps = args.whole_generations(state.save_steps)


def completion_text(completion: str | list[dict[str, Any]]) -> str:
    """A completion as text; of messages, the contents in order."""
    if isinstance(completion, str):
        return completion
    return "".join(str(message.get("content") or "") for message in completion)
