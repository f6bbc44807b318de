"""Which data sets work out of the box: rows of published forms, read from hand-made files and graded."""

import csv
import json

import pytest

from poise.rewards import verdict
from poise.tasks.task import task_named


def problems_of(tmp_path, rows, ending="jsonl", options=""):
    file = tmp_path / f"rows.{ending}"
    if ending == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif ending == "csv":
        with file.open("w", newline="", encoding="utf-8-sig") as out:
            writer = csv.DictWriter(out, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return task_named(f"{file}{options}").problems(100, seed=0, split="all")


def rewards(problem, *completions):
    return [verdict(completion, problem).reward for completion in completions]


Q = {"question": "Q?"}


@pytest.mark.parametrize(
    ("row", "right", "wrong"),
    [
        # MATH, AIME, DAPO-Math, GSM8K, Numina
        ({"problem": "Q?", "answer": "\\frac{1}{2}"}, ["\\boxed{0.5}"], ["\\boxed{2}"]),
        ({"problem": "Q?", "answer": 42}, ["\\boxed{42}"], ["\\boxed{24}"]),
        ({"problem": "Q?", "answer": "042"}, ["\\boxed{42}"], ["\\boxed{420}"]),
        ({"prompt": "Q?", "reward_model": {"ground_truth": "34"}}, ["Answer: 34"], ["Answer: 43"]),
        ({"question": "Q?", "answer": "3 * 4 = 12\n#### 12"}, ["\\boxed{12}"], ["\\boxed{3}"]),
        ({"problem": "Q?", "solution": "So $x = 3$ and \\boxed{9}."}, ["\\boxed{9}"], ["\\boxed{3}"]),
        # lists, numbers, booleans
        (Q | {"final_answer": ["$3$", "$4$"]}, ["\\boxed{3, 4}", "\\boxed{4, 3}"], ["\\boxed{3}", "\\boxed{3, 5}"]),
        (Q | {"answer": ["1", "2"]}, ["\\boxed{1, 2}"], ["\\boxed{1}", "\\boxed{2}"]),
        (Q | {"answer": [1, 2]}, ["\\boxed{2, 1}"], ["\\boxed{1}", "\\boxed{2}"]),
        (Q | {"answer": ["7"]}, ["\\boxed{7}"], ["\\boxed{8}"]),
        (Q | {"answer": 3e-06}, ["\\boxed{0.000003}", "\\boxed{3 \\times 10^{-6}}"], ["\\boxed{0.00003}"]),
        (Q | {"answer": 42.0}, ["\\boxed{42}"], ["\\boxed{42.5}"]),
        (Q | {"answer": True}, ["\\boxed{true}", "\\boxed{True}", "\\boxed{\\text{True}}"], ["\\boxed{False}"]),
        (Q | {"answer": "\\$18.90"}, ["\\boxed{18.9}"], ["\\boxed{18.09}"]),
        # MMLU, MMLU-Pro, ARC, MedQA, letters alone
        (Q | {"choices": ["3", "4", "5", "7"], "answer": 1}, ["B", "Answer: B", "\\boxed{4}"], ["A", "Answer: 3", "1"]),
        (Q | {"options": ["x", "y", "z"], "answer": "C", "answer_index": 2}, ["(C)"], ["B"]),
        (Q | {"choices": {"text": ["ice", "fog"], "label": ["1", "2"]}, "answerKey": "2"}, ["B", "fog"], ["A", "ice"]),
        (Q | {"options": {"A": "ice", "B": "fog"}, "answer": "fog"}, ["B"], ["A"]),
        (Q | {"answer": "D"}, ["D", "\\boxed{\\textbf{(D)}\\ 12}"], ["C", "A dog"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_rows_are_graded(tmp_path, row, right, wrong, ending):
    (problem,) = problems_of(tmp_path, [row], ending)
    assert rewards(problem, *right) == [1.0] * len(right)
    assert rewards(problem, *wrong) == [0.0] * len(wrong)


@pytest.mark.parametrize("missing", [None, "", float("nan"), [], "NaN"])
def test_a_missing_answer_is_ungradable(tmp_path, missing):
    (problem,) = problems_of(tmp_path, [Q | {"answer": missing}])
    assert verdict("\\boxed{1}", problem).cause == "no gold answer"


def test_options_are_asked_once(tmp_path):
    asked = "Which?\nA. ice\nB. fog"
    rows = [{"question": "Which?", "choices": ["ice", "fog"], "answer": 0}]
    assert problems_of(tmp_path, rows)[0].prompt == asked
    assert problems_of(tmp_path, [rows[0] | {"question": asked}])[0].prompt == asked


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (Q | {"answer": "5", "verifier": "exakt"}, "line 1 names a verifier 'exakt', which does not exist: there"),
        (Q | {"choices": ["3", "4"], "answer": 7}, "line 1 needs the letter, the index or the text of one of its 2"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_graded_are_refused(tmp_path, row, said):
    with pytest.raises(ValueError, match=said):
        problems_of(tmp_path, [row])


def test_repeated_rows_are_counted_and_contradictions_left_out(tmp_path, caplog):
    rows = [
        Q | {"answer": "1/2"},
        Q | {"answer": "0.5"},
        {"question": "R?", "answer": 1},
        {"question": "R?", "answer": 2},
    ]
    (problem,) = problems_of(tmp_path, rows)
    assert problem.prompt == "Q?"
    assert "2 distinct prompts in 4 rows, each is taken once; 1 have rows with different answers" in caplog.text


@pytest.mark.parametrize("column", ["problem", "notes"])
def test_long_fields_and_a_byte_order_mark_of_csv(tmp_path, column):
    row = {"problem": "Q?", "answer": "7", "notes": "n"} | {column: "x" * 200_000}
    (problem,) = problems_of(tmp_path, [row], "csv")
    assert (len(problem.prompt) == 200_000) == (column == "problem")
    assert rewards(problem, "\\boxed{7}") == [1.0]
