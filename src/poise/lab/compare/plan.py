"""The runs of a comparison, and what they have in common.

`Conditions` are the same in every run of a folder; a run adds an arm, a learning rate and a seed, and nothing else. So
runs may be added to a comparison later, and a run that is complete never has to be repeated.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

from poise.engines.trl import PoiseConfig
from poise.lab.compare.arms import arm_named
from poise.train.config import RunSettings, run_settings, trainer_types

DEFAULT_ARMS = ("poise", "paper", "rloo", "grpo", "dapo", "critic")
REFERENCE_ARM = "dapo"
"""What others are compared with, and whose final accuracy is to be reached; the last arm where it is not there."""
FIRST_TUNING_SEED = 1000
"""Learning rates are chosen on seeds from here on, and arms are compared on those below."""
TWIN_SAMPLING_SEED = 500
"""Added to the seed of sampling, not to that of prompts, in the run that is to show how large chance is."""
MOST_TRAINING_PROMPTS = 100_000

DECIDED_BY_COMPARISON = {
    "learning_rate": "it is chosen for each arm: give --learning-rates",
    "num_generations": "every arm has its own",
    "generation_batch_size": "give --batch-rollouts",
    "per_device_train_batch_size": "give --batch-rollouts and --batch-updates",
    "steps_per_generation": "give --batch-updates",
    "gradient_accumulation_steps": "it is 1 in every arm",
    "num_iterations": "it is 1 in every arm",
    "max_steps": "give --rollouts",
    "steps": "give --rollouts",
    "seed": "give --seeds",
    "preset": "it is what an arm is: give --arms",
    "preset_options": "it is what an arm is: give --arms",
    "loss_type": "it is what an arm is: give --arms",
    "scale_rewards": "it is what an arm is: give --arms",
    "epsilon": "it is what an arm is: give --arms",
    "epsilon_high": "it is what an arm is: give --arms",
    "shuffle_dataset": "all arms see the prompts in one order",
    "eval_prompts": "give --eval-prompts",
    "check_prompts": "give --eval-prompts",
    "check_every": "give --evaluations",
}
"""Settings of `poise train` that cannot be set here, and why."""


@dataclass(frozen=True)
class Conditions:
    """What all runs of a comparison have in common."""

    rollouts: int = 10_240
    """Sampled by each run before it ends, refills included."""
    batch_rollouts: int = 128
    """Trained on between two looks at the sampler: one generation batch."""
    batch_updates: int = 2
    """Updates of the policy made from one generation batch."""
    evaluations: int = 20
    """Of held-out accuracy after the first one, at equal distances in rollouts."""
    eval_prompts: int = 300
    completions: int = 16
    """Of each held-out prompt after training, for pass@k and distinct answers."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of `poise train`, by name: model, task and options of the trainer."""

    def __post_init__(self) -> None:
        for name, lowest in (
            ("batch_updates", 1),
            ("batch_rollouts", 2),
            ("evaluations", 3),
            ("eval_prompts", 1),
            ("completions", 1),
        ):
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} must be {lowest} or more, got {getattr(self, name)}")
        if self.batch_rollouts % self.batch_updates:
            raise ValueError(
                f"batch_updates must divide batch_rollouts, got {self.batch_updates} and {self.batch_rollouts}"
            )
        if self.rollouts < 3 * self.batch_rollouts:
            raise ValueError(
                f"a run needs 3 generation batches of {self.batch_rollouts} rollouts or more, got {self.rollouts} "
                "rollouts in all"
            )
        for name in self.settings:
            if name in DECIDED_BY_COMPARISON:
                raise ValueError(f"{name} cannot be set in a comparison: {DECIDED_BY_COMPARISON[name]}")
        schedule = str(self.settings.get("lr_scheduler_type", "constant"))
        if not schedule.startswith("constant"):
            raise ValueError(
                "arms end after the same number of rollouts, not of updates, so that a learning rate must not depend "
                f"on the number of updates to come: lr_scheduler_type must be constant, got {schedule!r}"
            )
        self.run_settings(seed=0)  # names what is unknown or contradicts itself

    @property
    def most_updates(self) -> int:
        """Of an arm that trains on everything it samples."""
        return math.ceil(self.rollouts / self.batch_rollouts) * self.batch_updates

    @property
    def num_prompts(self) -> int:
        """Length of the prompt stream: enough for groups of two, and for refills of the last step.

        Arms with one rollout a prompt come to its beginning again, and see most prompts twice.
        """
        return min(self.rollouts // 2 + self.batch_rollouts * 2, MOST_TRAINING_PROMPTS)

    def run_settings(self, *, seed: int) -> RunSettings:
        """The settings that `poise train` would have, apart from those of the arm."""
        shared = {
            "per_device_train_batch_size": self.batch_rollouts // self.batch_updates,
            "steps_per_generation": self.batch_updates,
            "lr_scheduler_type": "constant_with_warmup",
            "shuffle_dataset": False,
            "disable_dropout": True,
            "save_strategy": "no",
            "logging_steps": 1,
            "steps": self.most_updates,
            "seed": seed,
        }
        return run_settings(shared | dict(self.settings))


@dataclass(frozen=True)
class Run:
    """One training run of one arm."""

    arm: str
    learning_rate: float
    seed: int
    """Of prompts and sampling; problems, initial weights and held-out prompts are the same for all arms."""
    twin: bool = False
    """Whether sampling has another seed, and nothing else differs: the two tell what is chance."""

    @property
    def name(self) -> str:
        """The run's folder within a comparison."""
        return f"{arm_named(self.arm).folder}/lr-{self.learning_rate:g}/seed-{self.seed}{'-twin' if self.twin else ''}"

    @property
    def is_tuning(self) -> bool:
        """Whether it only chooses a learning rate."""
        return self.seed >= FIRST_TUNING_SEED

    @property
    def sampling_seed(self) -> int:
        """Of the trainer."""
        return self.seed + (TWIN_SAMPLING_SEED if self.twin else 0)

    def config(self, conditions: Conditions, output_dir: str) -> GRPOConfig:
        """The configuration of the arm's trainer.

        Raises:
            ValueError: If options contradict each other.
        """
        arm = arm_named(self.arm)
        settings = conditions.run_settings(seed=self.sampling_seed)
        options = settings.trainer | dict(arm.options)
        options |= {"num_generations": arm.group_size, "learning_rate": self.learning_rate}
        options |= {"seed": settings.seed, "max_steps": settings.steps}
        if arm.trainer not in ("group", "dynamic"):
            return PoiseConfig(output_dir, **options)
        known = set(trainer_types()) - POISE_OPTIONS
        return GRPOConfig(output_dir, **{name: value for name, value in options.items() if name in known})


POISE_OPTIONS = {name for name in trainer_types() if name not in GRPOConfig.__dataclass_fields__}
"""Options that stock TRL does not have."""


@dataclass(frozen=True)
class Comparison:
    """Which arms are compared, on how many seeds, at which learning rates.

    Raises:
        ValueError: If an arm is unknown or comes twice, seeds are too few for an interval, arms cannot share a budget,
            or there are too few learning rates to choose from.
    """

    conditions: Conditions = field(default_factory=Conditions)
    arms: tuple[str, ...] = DEFAULT_ARMS
    num_seeds: int = 5
    learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    """Tried for each arm; widened by the same factor while the best one lies at an edge."""
    num_tuning_seeds: int = 2
    """On which learning rates are tried; 0 takes the only one given."""
    twin: str | None = None
    """The arm that is run once more with other sampling seeds; default the first one."""

    def __post_init__(self) -> None:
        if not self.arms or len(set(self.arms)) < len(self.arms):
            raise ValueError(f"every arm stands once in a comparison, got {', '.join(self.arms) or 'none'}")
        for arm in map(arm_named, self.arms):
            if self.conditions.batch_rollouts % arm.group_size:
                raise ValueError(
                    "all arms train on the same number of rollouts a step, and "
                    f"{self.conditions.batch_rollouts} are no whole groups of {arm.group_size}, which {arm.name} needs"
                )
        if self.num_seeds < 2:
            raise ValueError(f"an interval over seeds needs 2 seeds or more, got {self.num_seeds}")
        if self.num_seeds > FIRST_TUNING_SEED:
            raise ValueError(f"arms are compared on at most {FIRST_TUNING_SEED} seeds, got {self.num_seeds}")
        rates = self.learning_rates
        if not rates or min(rates) <= 0 or list(rates) != sorted(set(rates)):
            raise ValueError(f"learning rates are positive and rise, got {', '.join(f'{r:g}' for r in rates)}")
        if self.num_tuning_seeds < 0:
            raise ValueError(f"num_tuning_seeds must be 0 or more, got {self.num_tuning_seeds}")
        if len(rates) < 3 and self.num_tuning_seeds:
            raise ValueError(f"a choice of learning rates needs 3 of them or more, got {len(rates)}")
        if len(rates) > 1 and not self.num_tuning_seeds:
            raise ValueError(f"without tuning seeds there is one learning rate for all arms, got {len(rates)}")
        if self.twin is not None and self.twin not in self.arms:
            raise ValueError(f"the arm run twice must be one of {', '.join(self.arms)}, got {self.twin!r}")
        Run(self.arms[0], rates[0], 0).config(self.conditions, "unused")  # contradictions show before anything is run

    @property
    def reference(self) -> str:
        """The arm that others are compared with."""
        return REFERENCE_ARM if REFERENCE_ARM in self.arms else self.arms[-1]

    @property
    def twin_arm(self) -> str:
        """The arm that is run twice."""
        return self.twin or self.arms[0]

    def tuning_runs(self, arm: str, learning_rate: float) -> list[Run]:
        """The runs on which a learning rate is judged."""
        seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + self.num_tuning_seeds)
        return [Run(arm, learning_rate, seed) for seed in seeds]

    def compared_runs(self, learning_rates: Mapping[str, float]) -> list[Run]:
        """The runs on which arms are compared, seed by seed, so that all arms share what a machine is up to.

        Args:
            learning_rates: The chosen one of each arm.
        """
        runs = []
        for seed in range(self.num_seeds):
            runs += [Run(arm, learning_rates[arm], seed) for arm in self.arms]
            runs.append(Run(self.twin_arm, learning_rates[self.twin_arm], seed, twin=True))
        return runs
