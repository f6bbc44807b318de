"""Options of a run: those of TRL's `GRPOConfig`, and which baseline is read from which hidden states.

The defaults are a case in which the features cost no extra forward pass and the gradient of the first minibatch is
unbiased. An option under which a baseline would be wrong is refused with one sentence.
"""

import logging
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, no_type_check

from transformers.utils import is_torch_bf16_gpu_available
from trl import GRPOConfig

import poise
from poise.engines import options
from poise.features.scalars import check_scalar_names

logger = logging.getLogger(__name__)

# What a completion's gradient is divided by. The score-norm weights follow it, and only the constant, which does not
# depend on what was sampled, leaves the policy gradient exactly unbiased.
LOSS_NORMALIZATION = {
    "dr_grpo": "constant",
    "luspo": "constant",
    "dapo": "token",
    "bnpo": "token",
    "cispo": "token",
    "vespo": "token",
    "grpo": "sequence",
    "sapo": "sequence",
}


class _One(int):
    """The 1 that TRL is shown while it asks for two rollouts a prompt or more: some baselines need no sibling."""

    def __lt__(self, other: int) -> bool:
        return other > 2


@dataclass
class PoiseConfig(GRPOConfig):  # type: ignore[misc]
    """Options of `PoiseTrainer`: those of `trl.GRPOConfig` and the ones below.

    Changed defaults: `num_generations` 2, `loss_type` "dr_grpo", `scale_rewards` "none", `disable_dropout` True, `bf16`
    only where the machine can, and `steps_per_generation` twice `gradient_accumulation_steps`, so that every batch of
    rollouts is trained on in two minibatches. TRL then computes the log-probabilities of the policy that sampled, and
    the features come from that forward pass. `save_steps` is rounded up to whole generation batches; where it was no
    share, that is said.

    Raises:
        ValueError: If the preset or one of its options is unknown, or if an option of TRL contradicts the baseline.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*GRPOConfig._VALID_DICT_FIELDS, "preset_options"]

    save_steps: float = field(
        default=500,
        metadata={
            "help": "Steps from one checkpoint to the next, or, below 1, their share of all steps. Rounded up to whole "
            "generation batches."
        },
    )
    num_generations: int | None = field(
        default=2, metadata={"help": "Rollouts per prompt. A baseline read from siblings needs 2 or more, others 1."}
    )
    steps_per_generation: int | None = field(
        default=None,
        metadata={
            "help": "Minibatches made of one generation batch. Default: twice `gradient_accumulation_steps`, so that "
            "the features come from a forward pass that is made anyway."
        },
    )
    loss_type: str = field(
        default="dr_grpo",
        metadata={
            "help": "Loss of TRL. Only a constant normaliser ('dr_grpo', 'luspo') leaves the gradient exactly unbiased."
        },
    )
    scale_rewards: str = field(
        default="none",
        metadata={
            "help": "'none': the advantage is reward minus baseline. 'batch': that, divided by the standard deviation "
            "of the rewards of earlier steps."
        },
    )
    disable_dropout: bool = field(
        default=True,
        metadata={"help": "Whether to disable dropout, so that features are those of the sampling policy."},
    )
    preset: str = field(default="poise", metadata={"help": "Name of the baseline: see `poise.preset`."})
    preset_options: dict[str, Any] | str | None = field(
        default=None, metadata={"help": 'Fields of the preset to change, such as {"window_rows": 4096}.'}
    )
    allow_biased_control: bool = field(
        default=False,
        metadata={"help": "Train with a baseline that is biased on purpose, to be compared with (`same-rollout`)."},
    )
    scalars: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names of the scalars that the preset reads: see `poise.features.scalars.SCALARS`. Default: the "
            "preset's, mean token entropies."
        },
    )
    layers: list[int] | None = field(
        default=None,
        metadata={"help": "Decoder layers whose hidden states are read, from 0. Default: one, at 0.6 of the depth."},
    )
    pool_tokens: int = field(
        default=10, metadata={"help": "Hidden states are means over the last `pool_tokens` tokens of a segment."}
    )
    end_of_thinking: str | None = field(
        default="</think>",
        metadata={"help": "Text whose tokens end the reasoning. Completions without it are all reasoning."},
    )
    domain_column: str = field(
        default="domain", metadata={"help": "Column of the data set that names a prompt's domain, if it is there."}
    )
    update_share: float = field(
        default=1.0,
        metadata={
            "help": "Share of each minibatch that the policy is updated on. Below 1, rollouts are drawn by the size of "
            "their gradients and count for those left out, so that the gradient's mean stays what it was."
        },
    )
    poise_feature_pass: str = field(
        default="auto",
        metadata={
            "help": "'auto': read the features with one more forward pass where TRL makes none that serves. "
            "'require_free': refuse to train in that case."
        },
    )

    def __post_init__(self) -> None:
        self._check_numbers()
        if getattr(self, "bf16", None) is None and not is_torch_bf16_gpu_available():  # TRL's own default fails there
            self.bf16 = False
        self.chose_steps_per_generation = self.steps_per_generation is None and self.generation_batch_size is None
        if self.chose_steps_per_generation:
            self.steps_per_generation = 2 * self.gradient_accumulation_steps
        rollouts = self.num_generations
        if rollouts is None or rollouts < 2:
            self.num_generations = _One(1)
        super().__post_init__()
        self.num_generations = rollouts
        needs_pass = self.needs_pass  # names an unknown preset or option
        options.check_preset(
            self.resolved_preset, rollouts, option="num_generations", biased_control=self.allow_biased_control
        )
        if self.scale_rewards not in ("none", "batch"):
            raise ValueError(
                "a group's standard deviation holds the rollout that it would divide, which biases the gradient: "
                "scale_rewards must be 'none', or 'batch' for the spread of earlier steps, got "
                f"{self.scale_rewards!r}"
            )
        if self.multi_objective_aggregation != "sum_then_normalize":
            raise ValueError(
                "normalising each reward divides it by its group's standard deviation, which holds the rollout itself: "
                f"multi_objective_aggregation must be 'sum_then_normalize', got {self.multi_objective_aggregation!r}; "
                "reward_weights say how much each reward counts"
            )
        check_scalar_names(self.resolved_preset.scalars)  # one of the user's own cannot be read here
        if self.loss_type not in LOSS_NORMALIZATION:
            raise ValueError(f"loss_type must be one of {sorted(LOSS_NORMALIZATION)}, got {self.loss_type!r}")
        options.check_update_share(
            self.update_share,
            normalization=self.loss_normalization,
            loss=f"loss_type={self.loss_type!r}",
            other_terms={
                name: getattr(self, name)
                for name, off in (("beta", 0), ("top_entropy_quantile", 1))
                if getattr(self, name) != off
            },
        )
        options.check_reading(self.pool_tokens, self.layers)
        if self.poise_feature_pass not in ("auto", "require_free"):
            raise ValueError(f"poise_feature_pass must be 'auto' or 'require_free', got {self.poise_feature_pass!r}")
        if self.poise_feature_pass == "require_free" and needs_pass and not self.behaviour_pass_is_made:
            raise ValueError(
                "poise_feature_pass='require_free' needs the forward pass that TRL makes when steps_per_generation "
                "exceeds gradient_accumulation_steps or vLLM's importance sampling is corrected, got "
                f"steps_per_generation={self.steps_per_generation}, "
                f"gradient_accumulation_steps={self.gradient_accumulation_steps} and use_vllm={self.use_vllm}"
            )
        share = self.save_steps
        steps = int(share) if share >= 1 else math.ceil(self.max_steps * share)
        if steps > 0:  # else a share of a number of epochs, not known yet
            rounded = self.whole_generations(steps)
            self.save_steps = share if rounded == steps else rounded

    def _check_numbers(self) -> None:
        if not 0 <= self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must not be below 0, and finite, got {self.learning_rate:g}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be greater than 0: sampling needs it, got {self.temperature:g}")
        layers = self.layers
        if layers is not None and (
            not isinstance(layers, list | tuple) or not layers or not all(type(layer) is int for layer in layers)
        ):
            raise ValueError(f"layers must be a list of whole numbers such as [1, 2], got {layers!r}")
        if layers is not None and min(layers) < 0:
            raise ValueError(f"layers are counted from 0, got {layers}")

    @property
    def steps_between_generations(self) -> int:
        """Optimizer steps from one moment at which all sampled rollouts are trained on to the next."""
        assert self.steps_per_generation is not None  # TRL has filled it in
        minibatches = self.steps_per_generation * self.num_iterations
        return math.lcm(minibatches, self.gradient_accumulation_steps) // self.gradient_accumulation_steps

    def whole_generations(self, save_steps: int) -> int:
        """`save_steps` rounded up to whole generation batches: TRL's checkpoints do not hold rollouts.

        Left as it is where checkpoints are not made every so many steps, or where the best of them is loaded at the
        end, which TRL finds only if every evaluation has its checkpoint.
        """
        every = self.steps_between_generations
        rounded = math.ceil(save_steps / every) * every
        if rounded == save_steps or self.save_strategy != "steps" or self.load_best_model_at_end:
            return save_steps
        if self.save_steps >= 1:  # a share was no exact number to begin with
            logger.warning(
                "save_steps is %d instead of %d: a generation batch is trained on for %d steps, and a checkpoint "
                "between them could not be resumed exactly",
                rounded,
                save_steps,
                every,
            )
        return rounded

    @property
    def resolved_preset(self) -> poise.Preset:
        """The preset with this configuration's options; `ValueError` where the name or an option is unknown."""
        if isinstance(self.preset_options, str):  # a host's JSON option that did not begin with a brace
            raise ValueError(f"preset_options must be a mapping or a JSON object, got {self.preset_options!r}")
        scalars = {} if self.scalars is None else {"scalars": self.scalars}
        return poise.preset(self.preset, **((self.preset_options or {}) | scalars))

    @property
    def needs_pass(self) -> bool:
        """Whether the preset reads anything from a forward pass over the rollouts."""
        preset = self.resolved_preset
        return preset.needs_features or preset.weighted

    @property
    def behaviour_pass_is_made(self) -> bool:
        """Whether TRL computes the log-probabilities of the policy that sampled, whatever the baseline."""
        assert self.steps_per_generation is not None  # TRL has filled it in
        passes_per_generation = self.steps_per_generation * self.num_iterations
        policy_moves_between = self.gradient_accumulation_steps % passes_per_generation != 0
        return bool(policy_moves_between or (self.use_vllm and self.vllm_importance_sampling_correction))

    @property
    def loss_normalization(self) -> str:
        """What the loss divides a completion's gradient by: "constant", "token" or "sequence"."""
        return LOSS_NORMALIZATION[self.loss_type]

    @property
    def sources_of_bias(self) -> list[str]:
        """Why the policy gradient is not exactly unbiased even in the first minibatch; empty where it is."""
        sources = options.sources_of_bias(
            self.resolved_preset, self.loss_normalization, loss=f"loss_type {self.loss_type!r}"
        )
        if self.mask_truncated_completions:
            sources.append("mask_truncated_completions leaves out rollouts by how they end")
        return sources


# The host's annotations do not hold of the host's own defaults (10 stands for a float), so they are not enforced.
no_type_check(PoiseConfig.__init__)
