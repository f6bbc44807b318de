"""A text names a task: the right problems on the right side, and one sentence for what is no task."""

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from poise.rewards import graded
from poise.tasks import embedded
from poise.tasks.data_set import file_rows
from poise.tasks.generated import json_text, json_value, reasoning_gym_problems
from poise.tasks.problem import Problem, split_of
from poise.tasks.task import task_named

GENERATED = ["embedded", "reasoning-gym:chain_sum?max_terms=3", "embedded + 3*reasoning-gym:gcd"]


def write_lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def questions(num: int, **changes: Any) -> list[dict[str, Any]]:
    return [{"problem": f"What is {n} + {n}?", "answer": str(2 * n)} | changes for n in range(num)]


# Generated tasks.


@pytest.mark.parametrize("spec", GENERATED)
def test_the_same_seed_draws_the_same_problems_and_more_of_them_begin_alike(spec: str):
    task = task_named(spec)
    assert task.problems(30, seed=1) == task_named(spec).problems(30, seed=1)
    assert [p.prompt for p in task.problems(30, seed=1)] != [p.prompt for p in task.problems(30, seed=2)]
    assert task.problems(30, seed=1, split="heldout") == task.problems(60, seed=1, split="heldout")[:30]


@pytest.mark.parametrize("spec", GENERATED)
def test_train_and_held_out_never_meet_whatever_the_seeds(spec: str):
    task = task_named(spec)
    sides = {
        split: {p.prompt for seed in range(2) for p in task.problems(150, seed=seed, split=split)}
        for split in ("train", "heldout")
    }
    assert sides["train"].isdisjoint(sides["heldout"])


@pytest.mark.parametrize("spec", GENERATED)
def test_gold_answers_are_graded_right_and_others_are_not(spec: str):
    task = task_named(spec)
    for problem in task.problems(20, seed=0):
        assert task.verifier(f"</think>{problem.answer}", problem) == 1.0
        assert task.verifier("</think>x", problem) < 1.0
    assert task.verifier is graded


def test_embedded_is_the_embedded_world_and_its_families_can_be_chosen():
    assert task_named("embedded").problems(9, seed=4) == embedded.problems(9, seed=4)
    task = task_named("embedded?families=sort, sum")
    assert task.name == "sort-sum"
    assert {p.domain for p in task.problems(40, seed=0)} == {"sort", "sum"}


def test_fields_of_reasoning_gym_s_configuration_are_read_by_their_types():
    spec = "reasoning-gym:chain_sum?min_terms=2&max_terms=2&min_digits=1&max_digits=1&allow_negation=false"
    for problem in task_named(spec).problems(60, seed=0):
        *_, left, sign, right, _ = problem.prompt.split()
        assert len(left) == len(right) == 1, problem.prompt
        assert int(problem.answer) == (int(left) + int(right) if sign == "+" else int(left) - int(right))
    assert task_named(spec).name == "chain_sum"


def test_seeds_that_lie_next_to_each_other_share_no_more_problems_than_chance():
    # Problem i of a data set of reasoning-gym has its seed + i: seeds 0 and 1 would share all but one of theirs.
    task = task_named("reasoning-gym:chain_sum?min_terms=4&max_terms=6")
    assert {p.prompt for p in task.problems(50, seed=0)}.isdisjoint({p.prompt for p in task.problems(50, seed=1)})


def test_an_instruction_stands_after_the_question_and_does_not_change_sides():
    plain = task_named("reasoning-gym:gcd").problems(5, seed=0, split="heldout")
    told = task_named("reasoning-gym:gcd?instruction=Give the number alone.").problems(5, seed=0, split="heldout")
    assert [p.prompt for p in told] == [f"{p.prompt}\n\nGive the number alone." for p in plain]


def test_too_few_questions_to_hold_some_out_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("poise.tasks.generated.split_of", lambda prompt: "train")
    with pytest.raises(ValueError, match="gcd with this configuration has too few questions to hold some of them out"):
        reasoning_gym_problems("gcd", {})(1, seed=0, split="heldout")


def test_json_text_brings_back_tuples_and_keys_that_are_no_text():
    value = {"a": (1, [2, (3,)]), "b": {1: "x", (2, 3): None}, "c": [1.5, Fraction(1, 3)]}
    assert json_value(json_text(value)) == value
    assert json.loads(json.dumps(value["a"])) != value["a"]  # the control: plain JSON does not


# Mixtures.


def test_mixtures_draw_evenly_or_by_weight():
    def shares(spec: str) -> Counter[str]:
        return Counter(p.verifier for p in task_named(spec).problems(600, seed=0))

    assert 240 < shares("embedded + reasoning-gym:gcd")["embedded"] < 360
    assert 120 < shares("1*embedded + 3*reasoning-gym:gcd")["embedded"] < 180
    assert 120 < shares("0.5*embedded + 1.5 * reasoning-gym:gcd")["embedded"] < 180


def test_a_task_of_a_mixture_that_runs_dry_leaves_its_place_to_the_others(tmp_path: Path):
    path = write_lines(tmp_path / "few.jsonl", questions(10))
    drawn = task_named(f"{path} + reasoning-gym:gcd").problems(100, seed=0, split="train")
    assert len(drawn) == 100
    assert Counter(p.domain for p in drawn)["few"] == len(task_named(path).problems(99, seed=0))


# Data sets.


def test_every_row_is_on_one_side_by_its_prompt(tmp_path: Path):
    task = task_named(write_lines(tmp_path / "sums.jsonl", questions(200)))
    sides = {split: task.problems(999, seed=0, split=split) for split in ("train", "heldout", "all")}
    assert {p.prompt for p in sides["all"]} == {row["problem"] for row in questions(200)}
    assert len(sides["all"]) == 200
    for split in ("train", "heldout"):
        assert all(split_of(p.prompt) == split for p in sides[split])
    assert 20 < len(sides["heldout"]) < 60
    assert task.problems(5, seed=1) != task.problems(5, seed=2)
    assert task.problems(5, seed=1) == task.problems(9, seed=1)[:5]


def test_a_given_split_is_held_out_and_what_is_in_it_is_not_trained_on(tmp_path: Path):
    path = write_lines(tmp_path / "sums.jsonl", questions(10))
    write_lines(tmp_path / "test.jsonl", questions(3))
    task = task_named(f"{path}?heldout=test.jsonl")
    assert {p.answer for p in task.problems(99, seed=0, split="heldout")} == {"0", "2", "4"}
    assert {p.answer for p in task.problems(99, seed=0)} == {str(2 * n) for n in range(3, 10)}


def test_rows_with_the_same_prompt_count_once(tmp_path: Path):
    task = task_named(write_lines(tmp_path / "sums.jsonl", questions(20) * 3))
    assert len(task.problems(999, seed=0, split="all")) == 20


def dapo_row(n: int) -> dict[str, Any]:
    """As in DAPO-Math-17k and the AIME files beside it."""
    return {
        "data_source": "math_dapo",
        "prompt": [{"content": f"Solve step by step. What is {n}+{n}?\n\nAnswer:", "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": str(2 * n), "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": f"{n:08x}"},
    }


FORMATS = {
    "dapo": dapo_row,
    "aime_2024": lambda n: {
        "ID": f"2024-I-{n}", "Problem": f"What is {n}+{n}?", "Solution": "Add.", "Answer": 2 * n
    },
    "aime25": lambda n: {"problem": f"What is {n}+{n}?", "answer": f"{2 * n}", "id": str(n)},
    "math_500": lambda n: {
        "problem": f"What is {n}+{n}?", "solution": f"It is $\\boxed{{{2 * n}}}$.", "answer": f"{2 * n}",
        "subject": "Algebra", "level": 2, "unique_id": f"test/{n}",
    },
    "gsm8k": lambda n: {"question": f"What is {n}+{n}?", "answer": f"He adds <<{n}+{n}={2 * n}>>.\n#### {2 * n}"},
    "olympiad": lambda n: {"question": f"What is {n}+{n}?", "final_answer": [f"${2 * n}$"]},
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet", "saved", "folder"])
def test_published_formats_are_read_and_graded(name: str, ending: str, tmp_path: Path):
    rows = [FORMATS[name](n) for n in range(3, 13)]
    path = tmp_path / f"{name}.{ending}"
    if ending == "jsonl":
        write_lines(path, rows)
    elif ending == "json":
        path.write_text(json.dumps(rows))
    elif ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif ending == "saved":
        datasets.Dataset.from_list(rows).save_to_disk(path)
    else:
        path.mkdir()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path / "train.parquet")
    task = task_named(str(path))
    found = sorted(task.problems(99, seed=0, split="all"), key=lambda p: int(p.prompt.split("+")[1].split("?")[0]))
    assert len(found) == 10
    assert task.name == name
    for n, problem in zip(range(3, 13), found, strict=True):
        assert f"What is {n}+{n}?" in problem.prompt
        assert problem.domain == name
        assert task.verifier(f"so\n\nAnswer: {2 * n}", problem) == 1.0
        assert task.verifier(rf"\boxed{{{2 * n}}}", problem) == 1.0
        assert task.verifier(f"Answer: {2 * n + 1}", problem) == 0.0
    if name == "dapo":
        assert found[0].messages == [{"role": "user", "content": found[0].prompt}]
        assert found[0].columns["extra_info"] == {"index": "00000003"}


def test_splits_of_a_saved_data_set_can_be_chosen(tmp_path: Path):
    sides = {name: datasets.Dataset.from_list(questions(num)) for name, num in (("train", 40), ("test", 5))}
    datasets.DatasetDict(sides).save_to_disk(tmp_path / "both")
    task = task_named(f"{tmp_path / 'both'}?heldout=test")
    assert [len(task.problems(99, seed=0, split=split)) for split in ("train", "heldout", "all")] == [35, 5, 40]
    with pytest.raises(ValueError, match=r"both has no split 'dev': it has train, test"):
        task_named(f"{tmp_path / 'both'}?split=dev")


def test_columns_verifier_and_instruction_can_be_named(tmp_path: Path):
    rows = [{"ask": f"q{n}", "gold": f"a{n}", "kind": {"topic": "odd" if n % 2 else "even"}} for n in range(6)]
    path = write_lines(tmp_path / "own.jsonl", rows)
    spec = f"{path}?prompt=ask&answer=gold&domain=kind.topic&verifier=exact&instruction=Be brief."
    found = sorted(task_named(spec).problems(9, seed=0, split="all"), key=lambda p: p.answer)
    assert [(p.prompt, p.answer, p.domain) for p in found[:2]] == [
        ("q0\n\nBe brief.", "a0", "even"),
        ("q1\n\nBe brief.", "a1", "odd"),
    ]
    assert graded("a1", found[1]) == 1.0
    assert graded("A1", found[1]) == 0.0


def test_a_missing_answer_in_a_row_is_ungradable_and_no_error(tmp_path: Path):
    rows = [*questions(3), {"problem": "What is love?", "answer": None}]
    found = task_named(write_lines(tmp_path / "own.jsonl", rows)).problems(9, seed=0, split="all")
    (missing,) = [p for p in found if p.answer == ""]
    assert graded("1", missing) != graded("1", missing)


def test_without_need_of_answers_the_column_may_be_missing(tmp_path: Path):
    path = write_lines(tmp_path / "own.jsonl", [{"prompt": "a", "tests": [1]}])
    (problem,) = task_named(path, needs_answers=False).problems(9, seed=0, split="all")
    assert problem.columns == {"tests": [1]}
    with pytest.raises(ValueError, match=r"needs a column answer, .* or solution, and has prompt, tests: name it with"):
        task_named(path)


def test_a_chat_is_asked_as_it_is_and_a_text_as_one_message():
    text = Problem("q", "a", "x")
    assert text.asked(as_chat=False) == "q"
    assert text.asked(as_chat=True) == [{"role": "user", "content": "q"}]
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    chat = Problem("s\n\nq", "a", "x", messages=turns)
    assert chat.asked(as_chat=True) == turns
    assert chat.asked(as_chat=False) == "s\n\nq"


# Sentences.


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("", "a task needs a name, got an empty text"),
        ("embedded?families=chess", "families needs names out of sum, sort"),
        ("embedded?seed=1", "the task embedded has one option, families, got seed"),
        ("embedded?families", "options of a task need the form .field=value&field=value, got 'families'"),
        ("reasoning-gym:chain_som", "reasoning-gym has no data set 'chain_som'; the closest is chain_sum"),
        ("reasoning-gym:gcd?size=3", "gcd of reasoning-gym has fields min_numbers, .*, got size"),
        ("reasoning-gym:gcd?extract=end", "extract needs one of all, line, word, number, got 'end'"),
        ("reasoning-gym:gcd?min_numbers=-3", "reasoning-gym refuses this configuration of gcd: "),
        ("reasoning-gym:gcd?min_numbers=two", "reasoning-gym refuses this configuration of gcd: "),
        ("0*embedded + reasoning-gym:gcd", "weights of a mixture must be greater than 0, got 0.0, 1.0"),
        ("embedded + reasoning-gym:gdc", "reasoning-gym has no data set 'gdc'; the closest is gcd"),
        ("no/such", "task 'no/such' is not embedded, .*, and no data set could be loaded from there: "),
        ("embeded", "task 'embeded' is not embedded, "),
        ("x.jsonl?colour=1", "options of a data set are prompt, answer, .*, got colour"),
        ("x.jsonl?verifier=magic", "verifier needs math, exact, choice, python, got 'magic'"),
    ],
)
def test_what_is_no_task_is_one_sentence(spec: str, sentence: str):
    with pytest.raises(ValueError, match=sentence) as error:
        task_named(spec)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none.jsonl"):
        task_named(str(tmp_path / "none.jsonl"))
    path = write_lines(tmp_path / "some.jsonl", questions(3))
    with pytest.raises(FileNotFoundError, match=r"there is no file test.jsonl"):
        task_named(f"{path}?heldout=test.jsonl")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "own.jsonl holds no problems"),
        ("\n\n", "own.jsonl holds no problems"),
        ('{"problem": "a", "answer": "b"}\n\n{"problem": \n', "own.jsonl line 3 is not JSON: Expecting value"),
        ('{"problem": "a", "answer": "b"}\n[1]\n', "own.jsonl line 2 must be an object with named columns, got a list"),
        ('{"text": "a", "answer": "b"}', "needs a column prompt, problem or question, and has text, answer: name it"),
        ('{"problem": "a", "reply": "b"}', "needs a column answer, .* or solution, and has problem, reply: name it"),
        ('{"problem": "a", "answer": "b"}\n{"answer": "b"}', "own.jsonl line 2 needs text or chat messages in column"),
        ('{"problem": 3, "answer": "b"}', "line 1 needs text or chat messages in column 'problem', got 3"),
        ('{"problem": " ", "answer": "b"}', "line 1 needs text or chat messages in column 'problem', got ' '"),
    ],
)
def test_a_data_set_that_cannot_be_read_is_one_sentence_with_its_place(tmp_path: Path, text: str, sentence: str):
    (tmp_path / "own.jsonl").write_text(text)
    with pytest.raises(ValueError, match=sentence) as error:
        task_named(str(tmp_path / "own.jsonl"))
    assert "\n" not in str(error.value)


def test_a_column_that_is_named_and_not_there_is_one_sentence(tmp_path: Path):
    path = write_lines(tmp_path / "own.jsonl", questions(1))
    with pytest.raises(ValueError, match=r"own.jsonl has no column 'quiz': it has problem, answer"):
        task_named(f"{path}?prompt=quiz")


def test_other_files_are_one_sentence(tmp_path: Path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a.json line 1 is not JSON"):
        list(file_rows(tmp_path / "a.json"))
    (tmp_path / "a.json").write_text('{"problem": "a"}')
    with pytest.raises(ValueError, match=r"a.json must hold a list of objects"):
        list(file_rows(tmp_path / "a.json"))
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match=r"a.txt must end with .jsonl, .json, .parquet or .csv"):
        list(file_rows(tmp_path / "a.txt"))


def test_an_unknown_split_is_one_sentence(tmp_path: Path):
    path = write_lines(tmp_path / "own.jsonl", questions(3))
    for spec, sentence in (
        ("reasoning-gym:gcd", "split needs 'train' or 'heldout', got 'test'"),
        (path, "split needs 'train', 'heldout' or 'all', got 'test'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            task_named(spec).problems(1, seed=0, split="test")


def test_comma_separated_values_are_read(tmp_path: Path):
    (tmp_path / "own.csv").write_text('question,answer\n"1,5 + 1?",2.5\nwhat is 2?,2\n')
    found = {p.prompt: p.answer for p in task_named(str(tmp_path / "own.csv")).problems(9, seed=0, split="all")}
    assert found == {"1,5 + 1?": "2.5", "what is 2?": "2"}


def test_a_verifier_that_is_not_installed_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_lines(tmp_path / "own.jsonl", questions(3))
    monkeypatch.setattr("poise.tasks.data_set.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"by the package math-verify: pip install 'poise-rlvr\[tasks\]'"):
        task_named(path)
    task_named(f"{path}?verifier=exact")
