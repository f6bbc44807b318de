"""How are the rollouts of a study drawn once, kept, and found again?

    completions/    one parquet file a batch: `poise.evaluate.evaluation`, which goes on where it was interrupted
    features/       beside it one safetensors file: token ids, states of all layers, scalars, weights

The rule: a batch is there when both of its files are; its features are read in the sitting that drew it, from the very
tokens that were sampled.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from poise.evaluate.evaluation import Evaluation, Rewards, batch_seed
from poise.evaluate.sampling import SampledCompletion, measured_completions
from poise.lab.study.reading import Reading, reading
from poise.storage.whole_files import write_whole, written_whole
from poise.tasks.problem import Problem
from poise.tasks.task import Task


@dataclass(frozen=True)
class StudyRollouts:
    """Rollouts of some prompts: `rewards` of all draws, everything else of the first `featured` draws alone."""

    prompts: list[str]
    domains: list[str]
    rewards: Float[Tensor, "prompts draws"]
    prompt_states: dict[int, Float[Tensor, "prompts layers width"]]
    """By the number of tokens that are pooled; of the first draw, for causal attention makes them alike."""
    completion_states: dict[int, Float[Tensor, "prompts featured layers width"]]
    scalars: Float[Tensor, "prompts featured scalars"]
    """A column for each of `poise.features.scalars.SCALARS`."""
    weights: Float[Tensor, "prompts featured"]
    prompt_ids: list[list[int]]
    completion_ids: list[list[list[int]]]
    layers: list[int]

    @property
    def featured(self) -> int:
        """Draws with features."""
        return self.scalars.shape[1]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: Sequence[int]) -> "StudyRollouts":
        index = torch.tensor(list(rows), dtype=torch.int64)
        return StudyRollouts(
            [self.prompts[row] for row in rows],
            [self.domains[row] for row in rows],
            self.rewards[index],
            {pool: states[index] for pool, states in self.prompt_states.items()},
            {pool: states[index] for pool, states in self.completion_states.items()},
            self.scalars[index],
            self.weights[index],
            [self.prompt_ids[row] for row in rows],
            [self.completion_ids[row] for row in rows],
            self.layers,
        )

    def gradable(self) -> "StudyRollouts":
        """The prompts all of whose rollouts could be graded."""
        return self[(~self.rewards.isnan().any(dim=1)).nonzero()[:, 0].tolist()]


def distinct_problems(
    task: Task, num: int, *, seed: int, split: str, apart_from: Sequence[Problem] = ()
) -> list[Problem]:
    """Up to `num` problems of different prompts, none of them among those of `apart_from`."""
    taken = {problem.prompt for problem in apart_from}
    found: dict[str, Problem] = {}
    for problem in task.problems(2 * num, seed=seed, split=split):
        if problem.prompt not in taken:
            found.setdefault(problem.prompt, problem)
    return list(found.values())[:num]


def draw(
    evaluation: Evaluation,
    policy: Any,
    tokenizer: Any,
    rewards: Rewards,
    *,
    featured: int,
    layers: Sequence[int],
    pools: Sequence[int],
    end_of_thinking_ids: Sequence[int],
    watch: Callable[[int], None] = lambda num_done: None,
) -> None:
    """Draw, read and grade what is missing of an evaluation.

    Args:
        evaluation: Its settings say what is drawn.
        policy, tokenizer: Who draws.
        rewards: The verifier.
        featured: Draws of each prompt whose features are read.
        layers, pools, end_of_thinking_ids: See `poise.lab.study.reading.reading`.
        watch: Told how many batches are done.
    """
    settings = evaluation.settings
    (evaluation.path / "features").mkdir(exist_ok=True)
    numbers = {batch_seed(settings.seed, number): number for number in range(evaluation.num_batches)}
    for number in numbers.values():
        if not _is_whole(_features_file(evaluation, number)):
            evaluation.file(number).unlink(missing_ok=True)

    def complete(texts: list[str], *, seed: int) -> list[SampledCompletion]:
        drawn = measured_completions(
            policy, tokenizer, texts, sampling=settings.sampling, seed=seed, batch_size=settings.batch_size
        )
        rows = evaluation.rows(numbers[seed])
        kept = [place for place, (_, each) in enumerate(rows) if each < featured]
        prompt_ids = [tokenizer(texts[place], add_special_tokens=False)["input_ids"] for place in kept]
        completion_ids = [drawn[place].token_ids for place in kept]
        read = (
            reading(
                policy,
                prompt_ids,
                completion_ids,
                layers=layers,
                pools=pools,
                end_of_thinking_ids=end_of_thinking_ids,
                temperature=settings.temperature,
            )
            if kept
            else None
        )
        _write(_features_file(evaluation, numbers[seed]), [rows[k] for k in kept], read, prompt_ids, completion_ids)
        return drawn

    evaluation.run(complete, rewards, watch=watch)


def drawn_rollouts(evaluation: Evaluation, *, featured: int, layers: Sequence[int]) -> StudyRollouts:
    """What was drawn.

    Args:
        evaluation: All of whose batches are there.
        featured: Draws of each prompt whose features were read.
        layers: That were read.
    """
    settings = evaluation.settings
    rewards = torch.full((settings.num_prompts, settings.k), torch.nan, dtype=torch.float64)
    prompts, domains = [""] * settings.num_prompts, [""] * settings.num_prompts
    parts: dict[str, list[Tensor]] = {}
    for number in range(evaluation.num_batches):
        for each in evaluation.completions(number) or []:
            prompts[each.problem], domains[each.problem] = each.prompt, each.domain
            if each.reward is not None:
                rewards[each.problem, each.draw] = each.reward
        for name, tensor in load_file(_features_file(evaluation, number)).items():
            parts.setdefault(name, []).append(tensor)
    joined = {name: torch.cat(each) for name, each in parts.items()}  # rows lie in the order (problem, draw)
    by_prompt = (settings.num_prompts, featured)
    pools = sorted(int(name.removeprefix("prompt.")) for name in joined if name.startswith("prompt."))
    prompt_ids = _ragged(joined["prompt_ids"], joined["prompt_lengths"])
    completion_ids = _ragged(joined["completion_ids"], joined["completion_lengths"])
    return StudyRollouts(
        prompts,
        domains,
        rewards,
        {pool: joined[f"prompt.{pool}"] for pool in pools},
        {pool: joined[f"completion.{pool}"].unflatten(0, by_prompt) for pool in pools},
        joined["scalars"].unflatten(0, by_prompt),
        joined["weights"].unflatten(0, by_prompt),
        prompt_ids[::featured],
        [completion_ids[first : first + featured] for first in range(0, len(completion_ids), featured)],
        list(layers),
    )


def check_same_study(folder: Path, settings: dict[str, Any]) -> None:
    """Write `config.json` into a new folder; refuse a folder of another study, or of something else.

    Raises:
        ValueError: If the folder holds a study of other settings.
        FileExistsError: If it holds something else.
    """
    file = folder / "config.json"
    plain = json.loads(json.dumps(settings))
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not file.is_file()):
        raise FileExistsError(f"{folder} already holds something that is no study: choose another --output")
    if file.is_file():
        try:
            theirs = json.loads(file.read_text())
        except ValueError as error:
            raise ValueError(f"{file} is not JSON: choose another --output") from error
        names = [name for name in plain if plain[name] != theirs.get(name)]
        if names:
            told = "; ".join(f"{name} is {theirs.get(name)!r} there and {plain[name]!r} here" for name in names)
            raise ValueError(f"{folder} holds another study: {told}. Choose another --output")
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(plain, indent=2) + "\n")


def _features_file(evaluation: Evaluation, number: int) -> Path:
    return evaluation.path / "features" / f"batch-{number:06d}.safetensors"


def _is_whole(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False


def _write(
    path: Path,
    rows: Sequence[tuple[int, int]],
    read: Reading | None,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
) -> None:
    """One batch's features, whole or not at all; a prompt's states with its first draw alone."""
    tensors: dict[str, Tensor] = {}
    if read is not None:
        first = torch.tensor([draw == 0 for _, draw in rows], dtype=torch.bool)
        tensors |= {f"prompt.{pool}": states[first] for pool, states in read.prompt.items()}
        tensors |= {f"completion.{pool}": states for pool, states in read.completion.items()}
        tensors |= {"scalars": read.scalars, "weights": read.weights}
    for name, each in (("prompt", prompt_ids), ("completion", completion_ids)):
        tensors[f"{name}_ids"] = torch.tensor([token for ids in each for token in ids], dtype=torch.int32)
        tensors[f"{name}_lengths"] = torch.tensor([len(ids) for ids in each], dtype=torch.int32)
    with written_whole(path) as place:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, place)


def _ragged(flat: Tensor, lengths: Tensor) -> list[list[int]]:
    return [part.tolist() for part in flat.split(lengths.tolist())]
