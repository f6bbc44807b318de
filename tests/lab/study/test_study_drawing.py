"""A study's rollouts are drawn once, end the same however often they were interrupted, and are of no two sides."""

import dataclasses

import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file

from poise.evaluate.evaluation import Evaluation, EvaluationSettings, problems_fingerprint, weights_fingerprint
from poise.lab.study.rollouts import Reader, distinct_problems, draw, drawn_rollouts
from poise.models.embedded import load_embedded_model
from poise.rewards import Grader
from poise.tasks.problem import Problem
from poise.tasks.task import Task, task_named

LAYERS, POOLS = [1, 3], [2]


@pytest.fixture(scope="module")
def policy():
    return load_embedded_model()


def evaluation(path, policy, **changes):
    problems = task_named("embedded").problems(5, seed=0, split="train")
    prompts = [problem.prompt for problem in problems]
    settings = EvaluationSettings(
        model="embedded",
        weights=weights_fingerprint(policy[0]),
        task="embedded",
        problems=problems_fingerprint(problems, prompts),
        num_prompts=5,
        k=4,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        max_completion_length=24,
        seed=3,
        batch_size=3,  # so that some batches hold none of the draws that are read
    )
    settings = dataclasses.replace(settings, **changes)
    return Evaluation(path, settings=settings, problems=problems, prompts=prompts)


def drawn(path, policy, *, stop_after=None):
    each = evaluation(path, policy)

    def watch(what, done, total):
        if done == stop_after:
            raise KeyboardInterrupt

    with Grader() as grader:
        draw(each, Reader(*policy, LAYERS, POOLS, 1.0), grader.rewards, featured=2, watch=watch)
    return each


def contents(path):
    files = {}
    for each in sorted(path.rglob("*")):
        if each.suffix == ".parquet":
            files[each.relative_to(path)] = pyarrow.parquet.read_table(each).to_pydict()
        elif each.suffix == ".safetensors":
            files[each.relative_to(path)] = each.read_bytes()
    return files


@pytest.fixture(scope="module")
def whole(tmp_path_factory, policy):
    return drawn(tmp_path_factory.mktemp("whole"), policy)


def test_an_interrupted_drawing_ends_with_identical_files(tmp_path, policy, whole):
    with pytest.raises(KeyboardInterrupt):
        drawn(tmp_path, policy, stop_after=3)
    assert 0 < len(contents(tmp_path)) < len(contents(whole.path))
    drawn(tmp_path, policy)
    assert contents(tmp_path) == contents(whole.path)


def test_a_batch_whose_features_are_cut_off_is_drawn_again(tmp_path, policy, whole):
    drawn(tmp_path, policy)
    file = tmp_path / "features" / "batch-000002.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    drawn(tmp_path, policy)
    assert contents(tmp_path) == contents(whole.path)


def test_what_is_found_again_is_what_was_sampled(policy, whole):
    model, tokenizer = policy
    rollouts = drawn_rollouts(whole, featured=2, layers=LAYERS)
    assert rollouts.rewards.shape == (5, 4)
    text = rollouts.prompts[3]
    assert rollouts.prompt_ids[3] == tokenizer(text, add_special_tokens=False)["input_ids"]
    [row] = [
        row
        for number in range(whole.num_batches)
        for row in whole.completions(number)
        if (row.problem, row.draw) == (3, 1)
    ]
    ids = rollouts.completion_ids[3][1]
    assert tokenizer.decode(ids, skip_special_tokens=True) == row.completion
    assert len(ids) == row.num_tokens
    assert float(rollouts.rewards[3, 1]) == row.reward
    again = Reader(model, tokenizer, LAYERS, POOLS, 1.0)([rollouts.prompt_ids[3]], [ids])
    assert torch.allclose(rollouts.completion_states[2][3, 1], again.completion[2][0], atol=1e-4)
    assert torch.allclose(rollouts.prompt_states[2][3], again.prompt[2][0], atol=1e-4)
    assert torch.allclose(rollouts.scalars[3, 1], again.scalars[0], atol=1e-4)


def test_only_the_draws_that_are_evidence_are_read(whole):
    rows = [row for number in range(whole.num_batches) for row in whole.rows(number)]
    read = sum(len(load_file(file)["prompt_lengths"]) for file in (whole.path / "features").iterdir())
    assert read == len([row for row in rows if row[1] < 2]) == 10


def test_some_rows_are_the_same_rollouts(whole):
    rollouts = drawn_rollouts(whole, featured=2, layers=LAYERS)
    some = rollouts[[4, 1]]
    assert some.prompts == [rollouts.prompts[4], rollouts.prompts[1]]
    assert torch.equal(some.completion_states[2], rollouts.completion_states[2][[4, 1]])
    assert some.completion_ids == [rollouts.completion_ids[4], rollouts.completion_ids[1]]


def test_prompts_with_an_ungradable_rollout_are_left_out(whole):
    rollouts = drawn_rollouts(whole, featured=2, layers=LAYERS)
    rollouts.rewards[2, 3] = float("nan")
    assert rollouts.gradable().prompts == [text for k, text in enumerate(rollouts.prompts) if k != 2]


def test_no_prompt_lies_on_both_sides_and_none_comes_twice():
    def problems(num, *, seed, split="train"):
        return [Problem(f"q{k % 7}", "1", "d") for k in range(num)]

    task = Task("t", problems)
    held_out = distinct_problems(task, 3, seed=0, split="heldout")
    training = distinct_problems(task, 10, seed=0, split="train", apart_from=held_out)
    assert [each.prompt for each in held_out] == ["q0", "q1", "q2"]
    assert [each.prompt for each in training] == ["q3", "q4", "q5", "q6"]
