"""The trainers of the arms, with everything that they sample counted.

Generation is TRL's own in every arm, refills included, and every rollout that was sampled counts, whether it is trained
on or not.

Dimensions: G rollouts of a prompt; N rows of L tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from trl import GRPOConfig

import poise
from poise.baselines import Recipe
from poise.batch import prompt_keys
from poise.engines.trl import PoiseTrainer
from poise.engines.trl.own_tokens import prompt_key
from poise.engines.trl.seams import OpenTrainer
from poise.lab.compare.arms import Arm, MethodRecipe
from poise.lab.compare.critic_baseline import CriticRecipe

NO_ADVANTAGE = 1e-6
"""Advantages smaller than that are none."""
MOST_DRAWS = 10
"""Generation batches that dynamic sampling draws for one step; then groups without a signal fill what is missing."""

Group = tuple[list[dict[str, Any]], Any, Tensor]
"""The rows, completions and rewards of one prompt's rollouts."""


@dataclass
class Tally:
    """What was sampled since training began."""

    rollouts: int = 0
    tokens: int = 0
    prompts: int = 0
    """Groups; a prompt that comes again counts again."""
    silent_prompts: int = 0
    """Groups in which every advantage is zero, trained on or dropped: nothing is learned from them."""
    silent_tokens: int = 0
    """Sampled for those."""
    surplus_prompts: int = 0
    """Groups with a signal that a refill brought beyond what was missing; they are dropped."""
    surplus_tokens: int = 0
    """Sampled for those."""
    draws: int = 0
    """Calls of the sampler."""
    unfilled_steps: int = 0
    """Steps whose batch holds groups without a signal, because dynamic sampling gave up looking for more."""

    def add_prompt(self, lengths: Sequence[int], *, silent: bool, surplus: bool = False) -> None:
        """Count one group, whose completions have these lengths."""
        self.prompts += 1
        self.silent_prompts += silent
        self.silent_tokens += silent * sum(lengths)
        self.surplus_prompts += surplus
        self.surplus_tokens += surplus * sum(lengths)


class Tallied(OpenTrainer):
    """Stands before a host's trainer and counts.

    Attributes:
        tally: What was sampled so far.
    """

    def __init__(self, *positional: Any, **named: Any) -> None:
        self.tally = Tally()
        super().__init__(*positional, **named)

    def sampled(self, prompts: list[Any]) -> Any:
        """TRL's completions, counted."""
        generated = super().sampled(prompts)
        completion_ids = generated[1]
        self.tally.draws += 1
        self.tally.rollouts += len(completion_ids)
        self.tally.tokens += sum(map(len, completion_ids))
        return generated

    def scored(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's generation batch, its prompts counted."""
        scored = super().scored(inputs)
        lengths = scored["completion_mask"].sum(dim=1).tolist()
        silent = scored["advantages"].abs() < NO_ADVANTAGE
        size = self.num_generations
        for first in range(0, len(lengths), size):
            group = slice(first, first + size)
            self.tally.add_prompt(lengths[group], silent=bool(silent[group].all()))
        return scored


class PresetTrainer(Tallied, PoiseTrainer):
    """`PoiseTrainer`, counted."""


class GroupTrainer(Tallied):
    """Stock TRL, counted."""


class MethodTrainer(PresetTrainer):
    """`PoiseTrainer` with a baseline that is no preset; one with a `look` is shown each batch before its step.

    Args:
        recipe: Of the baseline.
    """

    def __init__(self, *positional: Any, recipe: Recipe, **named: Any) -> None:
        super().__init__(*positional, **named)
        self.baseline = poise.OnlineBaseline(poise.Preset("method", recipe))
        self._rows: list[dict[str, Any]] = []

    def scored(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._rows = inputs
        return super().scored(inputs)

    def see_rollouts(self, scored: dict[str, Any]) -> None:
        """Show the method the tokens, and the keys of the prompts."""
        if hasattr(self.baseline.method, "look"):
            keys = prompt_keys([prompt_key(row, whole=False) for row in self._rows])
            self.baseline.method.look(self, scored, keys)

    def greedy_rewards(self, places: Sequence[int]) -> list[float]:
        """Rewards of one greedy rollout of each of these rows' prompts, which count as sampled; NaN if ungradable."""
        rows = [self._rows[place] for place in places]
        prompts = [row["prompt"] for row in rows]
        kept = self._generated, self._rewards_per_func
        self.generation_config.do_sample = False
        try:
            generated = self.sampled(prompts)
        finally:
            self.generation_config.do_sample = True
        of_functions = self.graded(rows, prompts, generated[3], generated[1])
        self._generated, self._rewards_per_func = kept
        rewards = (of_functions * self.reward_weights.to(of_functions.device)).nansum(dim=1)
        rewards[of_functions.isnan().all(dim=1)] = torch.nan
        found: list[float] = rewards.tolist()
        return found

    def logprobs(self, ids: Int[Tensor, "N L"], mask: Int[Tensor, "N L"], columns: int) -> Float[Tensor, "N columns"]:
        """Log-probabilities of the last `columns` tokens, by the policy as it is."""
        size = self.args.per_device_train_batch_size
        found: Tensor = self._get_per_token_logps_and_entropies(self.model, ids, mask, columns, batch_size=size)[0]
        return found


class DynamicSamplingTrainer(Tallied):
    """Stock TRL on groups of mixed rewards alone (DAPO, arXiv:2503.14476).

    Prompts come from the data set in its order. A step samples one generation batch, keeps the groups whose rewards
    differ, and samples again until there are as many as the step trains on; what is left over is dropped, as in the
    authors' code. Only then does TRL score the batch: forward passes over dropped rollouts are not made.
    """

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        self._next_prompt = 0
        self._kept: tuple[Any, Tensor] | None = None

    def sampled(self, prompts: list[Any]) -> Any:
        """TRL's completions; while TRL scores what was kept, those."""
        return super().sampled(prompts) if self._kept is None else self._kept[0]

    def graded(self, inputs: Any, prompts: Any, completions: Any, completion_ids: Any) -> Tensor:
        """TRL's rewards; while TRL scores what was kept, those."""
        if self._kept is None:
            return super().graded(inputs, prompts, completions, completion_ids)
        return self._kept[1]

    def scored(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self.model.training:
            return super().scored(inputs)
        rows, generated, rewards = self._mixed_groups(len(inputs) // self.num_generations)
        self._kept = (generated, rewards)
        try:
            return super().scored(rows)
        finally:
            self._kept = None

    def _mixed_groups(self, wanted: int) -> tuple[list[dict[str, Any]], Any, Tensor]:
        """Rows, completions and rewards of `wanted` groups."""
        kept: list[Group] = []
        spare: list[Group] = []
        for _ in range(MOST_DRAWS):
            if len(kept) == wanted:
                break
            for group in self._sampled_groups(wanted):
                (kept if len(kept) < wanted and self._is_mixed(group[2]) else spare).append(group)
        if len(kept) < wanted:
            self.tally.unfilled_steps += 1
            short = wanted - len(kept)
            kept, spare = kept + spare[:short], spare[short:]
        for _, generated, rewards in spare:
            surplus = self._is_mixed(rewards)
            self.tally.add_prompt([len(ids) for ids in generated[1]], silent=not surplus, surplus=surplus)
        parts = [group[1] for group in kept]
        joined = tuple(_joined([part[place] for part in parts]) for place in range(len(parts[0])))
        return [row for group in kept for row in group[0]], joined, torch.cat([group[2] for group in kept])

    def _sampled_groups(self, num: int) -> list[Group]:
        """The next prompts of the data set, each as rows, completions and rewards of its group."""
        size = self.num_generations
        places = [(self._next_prompt + k) % len(self.train_dataset) for k in range(num)]
        self._next_prompt += num
        rows = [dict(self.train_dataset[place]) for place in places for _ in range(size)]
        prompts = [row["prompt"] for row in rows]
        generated = self.sampled(prompts)
        rewards = self.graded(rows, prompts, generated[3], generated[1])
        groups = [slice(first, first + size) for first in range(0, len(rows), size)]
        return [
            (rows[group], tuple(_part(each, group, len(rows)) for each in generated), rewards[group])
            for group in groups
        ]

    def _is_mixed(self, rewards_per_func: Float[Tensor, "G functions"]) -> bool:
        """Whether the rewards of a group differ: only then does the group mean leave an advantage."""
        rewards = (rewards_per_func * self.reward_weights.to(rewards_per_func.device)).nansum(dim=1)
        return bool(rewards.max() > rewards.min())


def _part(each: Any, group: slice, num_rows: int) -> Any:
    """A group's rows of one thing that TRL generated; what has no rows stays."""
    return each[group] if isinstance(each, list) and len(each) == num_rows else each


def _joined(parts: list[Any]) -> Any:
    return [row for part in parts for row in part] if isinstance(parts[0], list) else parts[0]


def arm_trainer(arm: Arm, model: Any, reward_functions: Any, config: GRPOConfig, **named: Any) -> Tallied:
    """The trainer of an arm."""
    if arm.trainer == "group":
        return GroupTrainer(model, reward_functions, config, **named)
    if arm.trainer == "dynamic":
        return DynamicSamplingTrainer(model, reward_functions, config, **named)
    if arm.trainer == "preset":
        return PresetTrainer(model, reward_functions, config, **named)
    recipe = CriticRecipe(model, seed=config.seed) if arm.trainer == "critic" else MethodRecipe(arm.method)
    return MethodTrainer(model, reward_functions, config, recipe=recipe, **named)
