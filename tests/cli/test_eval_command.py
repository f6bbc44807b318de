"""An evaluation goes on where it was interrupted, ends as if it had not been, and refuses what it cannot measure."""

import dataclasses
import json
import random
import re

import pyarrow
import pyarrow.parquet
import pytest
import torch
from typer.testing import CliRunner

from poise.cli import app
from poise.cli.eval import folder_name, prompt_text
from poise.evaluate import SampledCompletion, Sampling, measured_completions, sampled_completions
from poise.evaluate.evaluation import (
    Evaluation,
    EvaluationSettings,
    batch_seed,
    problems_fingerprint,
    weights_fingerprint,
)
from poise.evaluate.math_sets import INSTRUCTION, is_math_set, math_set_task
from poise.models.embedded import load_embedded_model
from poise.rewards import Grader
from poise.tasks.embedded import problems as embedded_problems
from poise.tasks.problem import Problem

PROBLEMS = [Problem(f"q{i}", f"{i}", "odd" if i % 2 else "even") for i in range(5)]
PROMPTS = [f"<user>{problem.prompt}" for problem in PROBLEMS]
SETTINGS = EvaluationSettings(
    model="a/b",
    weights="w0",
    task="t",
    problems=problems_fingerprint(PROBLEMS, PROMPTS),
    num_prompts=5,
    k=3,
    temperature=1.0,
    top_p=1.0,
    top_k=0,
    max_completion_length=9,
    seed=4,
    batch_size=4,
)


class Policy:
    """Answers at random, as its seed says; is interrupted before a given call."""

    def __init__(self, *, interrupted_at=None):
        self.calls, self.interrupted_at = [], interrupted_at

    def __call__(self, prompts, *, seed):
        if len(self.calls) == self.interrupted_at:
            raise KeyboardInterrupt
        self.calls.append((prompts, seed))
        draw = random.Random(seed)
        return [
            SampledCompletion(f"{p[-1]}{draw.random():.3f}", draw.randint(1, 9), draw.random() < 0.2) for p in prompts
        ]


def rewards(completions, problems):
    """Graded by what was drawn; one in four cannot be."""
    assert all(text[0] == problem.answer for text, problem in zip(completions, problems, strict=True))
    last = [int(text[-1]) for text in completions]
    return [float("nan") if digit % 4 == 3 else float(digit % 4 == 0) for digit in last]


def evaluation(path, **changes):
    return Evaluation(path, settings=dataclasses.replace(SETTINGS, **changes), problems=PROBLEMS, prompts=PROMPTS)


def contents(path):
    return {
        each.relative_to(path): pyarrow.parquet.read_table(each).to_pydict()
        if each.suffix == ".parquet"
        else each.read_text()
        for each in path.rglob("*")
        if each.is_file()
    }


# Going on.


@pytest.mark.parametrize("interrupted_at", [0, 1, 3])
def test_an_interrupted_evaluation_ends_as_an_uninterrupted_one(tmp_path, interrupted_at):
    whole = Policy()
    results = evaluation(tmp_path / "whole").run(whole, rewards)
    first = Policy(interrupted_at=interrupted_at)
    with pytest.raises(KeyboardInterrupt):
        evaluation(tmp_path / "parts").run(first, rewards)
    second = Policy()
    assert evaluation(tmp_path / "parts").run(second, rewards) == results
    assert first.calls + second.calls == whole.calls
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    # The control: another seed draws something else.
    assert evaluation(tmp_path / "other", seed=5).run(Policy(), rewards)["all"] != results["all"]


def test_a_batch_that_was_cut_off_is_drawn_again(tmp_path):
    results = evaluation(tmp_path / "e").run(Policy(), rewards)
    path = tmp_path / "e" / "completions" / "batch-000001.parquet"
    path.write_bytes(path.read_bytes()[:100])
    again = Policy()
    assert evaluation(tmp_path / "e").missing == [1]
    assert evaluation(tmp_path / "e").run(again, rewards) == results
    assert [seed for _, seed in again.calls] == [batch_seed(4, 1)]


def test_every_prompt_is_completed_k_times_in_batches_with_seeds_of_their_own(tmp_path):
    policy = Policy()
    done = []
    evaluation(tmp_path / "e").run(policy, rewards, watch=done.append)
    drawn = [prompt for prompts, _ in policy.calls for prompt in prompts]
    assert drawn == [prompt for prompt in PROMPTS for _ in range(3)]
    assert [len(prompts) for prompts, _ in policy.calls] == [4, 4, 4, 3]
    assert len({seed for _, seed in policy.calls}) == 4
    assert done == [0, 1, 2, 3, 4]


def test_completions_are_kept_with_their_rewards(tmp_path):
    results = evaluation(tmp_path / "e").run(Policy(), rewards)
    rows = [
        row
        for path in sorted((tmp_path / "e" / "completions").iterdir())
        for row in pyarrow.parquet.read_table(path).to_pylist()
    ]
    assert [(row["problem"], row["draw"]) for row in rows] == [(i, j) for i in range(5) for j in range(3)]
    assert {row["domain"] for row in rows if row["problem"] % 2} == {"odd"}
    ungradable = [row["reward"] is None for row in rows]
    assert 0 < sum(ungradable) < 15
    assert results["all"]["ungradable_share"] == sum(ungradable) / 15
    assert results["all"]["truncated_share"] == sum(row["truncated"] for row in rows) / 15
    assert results["by_domain"]["odd"]["prompts"] == 2
    assert json.loads((tmp_path / "e" / "results.json").read_text()) == results
    assert "| all (" in (tmp_path / "e" / "results.md").read_text()


def test_another_configuration_is_refused_with_both_values(tmp_path):
    evaluation(tmp_path / "e")
    with pytest.raises(ValueError, match=r"k is 3 there and 2 here; temperature is 1\.0 there and 0\.5 here\. Choose"):
        evaluation(tmp_path / "e", k=2, temperature=0.5)
    evaluation(tmp_path / "e", model="the/same/moved")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "notes.txt").touch()
    with pytest.raises(FileExistsError, match="already holds something that is no evaluation"):
        evaluation(tmp_path / "files")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"k": 0}, "k must be 1 or more, got 0"),
        ({"temperature": 0.0}, "temperature must be greater than 0, got 0"),
        ({"top_p": 1.5}, "top_p must be greater than 0 and at most 1, got 1.5"),
        ({"top_k": -1}, r"top_k must be 0 \(all tokens\) or more, got -1"),
        ({"num_prompts": 6}, "6 prompts were asked for, got 5 and 5"),
    ],
)
def test_impossible_settings_are_one_sentence(tmp_path, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        evaluation(tmp_path / "e", **changes)
    assert not (tmp_path / "e").exists()


def test_fingerprints_differ_when_weights_or_problems_do(tiny_model):
    before = weights_fingerprint(tiny_model)
    assert weights_fingerprint(tiny_model) == before
    with torch.no_grad():
        tiny_model.lm_head.weight[0, 0] += 1e-6
    assert weights_fingerprint(tiny_model) != before
    other = [dataclasses.replace(PROBLEMS[0], answer="1"), *PROBLEMS[1:]]
    assert problems_fingerprint(other, PROMPTS) != SETTINGS.problems != problems_fingerprint(PROBLEMS, PROMPTS[::-1])


# Sampling.


def test_lengths_end_with_the_token_that_ends_the_completion():
    model, tokenizer = load_embedded_model()
    prompts = [each.prompt for each in embedded_problems(32, seed=3)]
    sampling = Sampling(max_completion_length=10)
    found = measured_completions(model, tokenizer, prompts, sampling=sampling, seed=0)
    assert [each.text for each in found] == sampled_completions(model, tokenizer, prompts, sampling=sampling, seed=0)
    for each in found:
        num_tokens = len(tokenizer(each.text, add_special_tokens=False)["input_ids"])
        assert each.num_tokens == num_tokens + (not each.truncated)
        assert each.num_tokens == 10 or not each.truncated
    assert 0 < sum(each.truncated for each in found) < 32


# Math sets.


@pytest.fixture
def data_dir(tmp_path):
    """Files in the forms in which the sets are published."""
    folder = tmp_path / "data"
    (folder / "aime_2024" / "data").mkdir(parents=True)
    (folder / "math-ai_amc23").mkdir()
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(
            [
                {"id": 60, "problem": "What is 200 + 4?", "solution": "It is \\boxed{204}.", "answer": "204"},
                {"id": 61, "problem": "What is 100 + 13?", "solution": "It is \\boxed{113}.", "answer": "113"},
            ]
        ),
        folder / "aime_2024" / "data" / "train-00000-of-00001.parquet",
    )
    (folder / "AMC-2023.jsonl").write_text('{"id": 0, "question": "What is 20 + 7?", "answer": 27.0}\n')
    (folder / "math500.jsonl").write_text(
        '{"problem": "Halve 1.", "solution": "...", "answer": "\\\\frac{1}{2}", "subject": "Algebra", "level": 1}\n'
    )
    return folder


def test_math_sets_are_found_under_their_published_names_and_graded(data_dir):
    task = math_set_task("aime24,amc23,math500", data_dir=data_dir)
    drawn = task.problems(30, seed=0)
    assert sorted(problem.domain for problem in drawn) == ["aime24", "aime24", "amc23", "math500"]
    assert all(problem.prompt.endswith(INSTRUCTION) for problem in drawn)
    assert len(task.problems(1, seed=0)) == 3  # of each set
    by_answer = {problem.answer: problem for problem in drawn}
    with Grader(workers=1) as grader:
        found = grader.rewards(
            ["So \\boxed{204}.", "So \\boxed{205}.", "It is $\\boxed{0.5}$", "thus \\boxed{27}"],
            [by_answer["204"], by_answer["204"], by_answer["\\frac{1}{2}"], by_answer["27.0"]],
        )
    assert found == [1.0, 0.0, 1.0, 1.0]
    assert is_math_set("aime24, hmmt25")
    assert not is_math_set("aime24,embedded")


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("aime25", "needs one file for aime25, such as aime25.jsonl, found none"),
        ("aime24,aime24", "each math set counts once, got aime24,aime24"),
        ("aime23", "math sets are aime24, .*, got aime23"),
    ],
)
def test_math_sets_that_are_not_there_are_one_sentence(data_dir, spec, sentence):
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        math_set_task(spec, data_dir=data_dir)


def test_a_set_in_two_places_is_not_guessed_at(data_dir):
    (data_dir / "aime2024.jsonl").write_text('{"problem": "x", "answer": "1"}\n')
    with pytest.raises(FileNotFoundError, match=r"found aime2024\.jsonl, aime_2024/data/train-00000-of-00001\.parquet"):
        math_set_task("aime24", data_dir=data_dir)


# The command.


class ChatTokenizer:
    """Shows what it is asked to fill in; without a template, a tokenizer that begins every text with a mark."""

    bos_token, bos_token_id = "<s>", 1

    def __init__(self, chat_template):
        self.chat_template = chat_template

    def __call__(self, text):
        return {"input_ids": [1, 5]}

    def apply_chat_template(self, messages, *, tokenize, add_generation_prompt, **options):
        assert (tokenize, add_generation_prompt) == (False, True)
        return "|".join(f"{each['role']}:{each['content']}" for each in messages) + f"|{options}"


def test_policies_with_a_chat_template_are_asked_in_a_chat():
    def asked(template, **options):
        return prompt_text(ChatTokenizer(template), PROBLEMS[0], chat_options=options)

    assert asked("there is one", enable_thinking=False) == "user:q0|{'enable_thinking': False}"
    assert asked(None) == "<s>q0"


def test_folders_are_named_for_run_and_checkpoint():
    assert folder_name("runs/x/checkpoints/checkpoint-240") == "x-checkpoint-240"
    assert folder_name("./reasoning-gym:chain_sum?min_terms=2") == "reasoning-gym-chain_sum-min_terms=2"
    assert folder_name("..") == "model"


def command(*arguments):
    return CliRunner().invoke(app, ["eval", *arguments])


def test_command_measures_goes_on_and_refuses_another_configuration(tmp_path):
    path = tmp_path / "e"
    given = ["--k", "2", "--prompts", "6", "--batch-size", "5", "--output", str(path)]
    done = command(*given)
    assert done.exit_code == 0, done.output
    assert "6 problems, 2 completions each; temperature 1, at most 64 tokens, seed 1." in done.output
    assert re.search(r"^\| all +\| +6 \| 0\.", done.output, flags=re.MULTILINE)
    before = contents(path)
    (path / "completions" / "batch-000002.parquet").unlink()
    (path / "results.json").unlink()
    assert command(*given).exit_code == 0
    assert contents(path) == before
    refused = command(*given, "--top-p", "0.9")
    assert refused.exit_code == 2
    assert "top_p is 1.0 there and 0.9 here" in refused.output
    assert contents(path) == before


@pytest.mark.parametrize("where", ["run", "option"])
def test_verdicts_know_the_end_of_thinking_of_the_run(tmp_path, monkeypatch, where):
    from poise.cli.eval import _run_mark

    (tmp_path / "config.yaml").write_text("end_of_thinking: '[/THINK]'\n")
    assert _run_mark(tmp_path) == "[/THINK]"
    assert _run_mark(tmp_path / "nowhere") == "</think>"

    def grader(*, opening, end_of_thinking):
        raise ValueError(f"graded with {end_of_thinking}")

    monkeypatch.setattr("poise.rewards.Grader", grader)
    if where == "run":
        monkeypatch.setattr("poise.cli.eval._run_mark", lambda folder: "[/THINK]")
    given = ["--prompts", "2", "--output", str(tmp_path / "e")]
    done = command(*given, *(["--end-of-thinking", "[/THINK]"] if where == "option" else []))
    assert "graded with [/THINK]" in done.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--prompts", "0"], "poise eval: prompts must be 1 or more, got 0"),
        (["--k", "0"], "poise eval: k must be 1 or more, got 0"),
        (["--model", "./nowhere"], "poise eval: model needs 'embedded'"),
        (["--task", "aime24", "--data-dir", "nowhere"], "--data-dir needs a folder with the files of math sets"),
        (["--task", "embedded?families=tables"], "poise eval: families needs names out of"),
        (["--instruction", "x"], "--instruction is for math sets"),
        (["--chat-template-kwargs", "yes"], "--chat-template-kwargs needs a mapping such as {enable_thinking: false}"),
        (["--split", "both"], "split needs 'train' or 'heldout', got 'both'"),
    ],
)
def test_wrong_input_is_one_sentence(tmp_path, arguments, sentence):
    done = command(*arguments, "--output", str(tmp_path / "e"))
    assert done.exit_code == 2
    assert sentence in done.output.replace("\n", " ")
    assert not (tmp_path / "e").exists()
