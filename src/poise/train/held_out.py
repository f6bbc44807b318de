"""Completions of held-out problems by the policy of a trainer, and how often they are right."""

from collections.abc import Callable
from typing import Any

from trl import GRPOTrainer

from poise.evaluate.held_out import HeldOutAccuracy, accuracy_of_rewards, with_rewards
from poise.evaluate.sampling import Sampling, measured_completions
from poise.tasks.graded_task import HELD_OUT_SEED, GradedTask
from poise.tasks.problem import Problem


def policy_accuracy(
    trainer: GRPOTrainer,
    graded_task: GradedTask,
    problems: list[Problem],
    *,
    batch_size: int = 256,
    watch: Callable[[int], None] = lambda done: None,
) -> HeldOutAccuracy:
    """How often a trainer's policy is right, sampled as in training: one completion a problem, always the same draw.

    Args:
        trainer: Whose policy.
        graded_task: Asks and grades.
        problems: What to solve.
        batch_size: Prompts that are completed side by side.
        watch: Told how many problems have a completion, whenever that changes.
    """
    completions = policy_completions(
        trainer, graded_task, problems, seed=HELD_OUT_SEED, batch_size=batch_size, watch=watch
    )
    right = graded_task.held_out_rewards(completions, problems)
    measured = accuracy_of_rewards(right, domains=[problem.domain for problem in problems])
    rewards = graded_task.user_rewards(completions, problems)
    return measured if rewards is None else with_rewards(measured, rewards)


def policy_completions(
    trainer: GRPOTrainer,
    graded_task: GradedTask,
    problems: list[Problem],
    *,
    seed: int,
    batch_size: int = 256,
    watch: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """One completion a problem by a trainer's policy, sampled as in training, without training taking notice."""
    completions = measured_completions(
        trainer.accelerator.unwrap_model(trainer.model),
        trainer.processing_class,
        graded_task.texts(problems),
        sampling=training_sampling(trainer),
        seed=seed,
        batch_size=batch_size,
        watch=watch,
    )
    return [each.text for each in completions]


def training_sampling(trainer: GRPOTrainer) -> Any:
    """What training samples with: the trainer's own generation settings; under vLLM, the options that it is given."""
    args = trainer.args
    if not args.use_vllm:
        return trainer.generation_config
    return Sampling(
        max_completion_length=args.max_completion_length,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
    )
