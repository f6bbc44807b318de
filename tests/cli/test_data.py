"""Files of `poise data` have verl's columns, whatever the columns of their source are called."""

import json

import pyarrow
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from poise.cli import app

MESSAGES = [{"role": "user", "content": "What is 1+1? End with Answer: ..."}]
SOURCES = {
    "DAPO-Math, every row a hundred times": (
        "dapo.parquet",
        [{"data_source": "math_dapo", "prompt": MESSAGES, "reward_model": {"ground_truth": "2"}}] * 100,
        "",
        ("math_dapo", "2", "math"),
    ),
    "its English part, a text": ("en.parquet", [{"prompt": "What is 1+1?", "solution": "2"}], "", ("en", "2", "math")),
    "an evaluation set": ("aime24.jsonl", [{"problem": "What is 1+1?", "answer": 2}], "", ("aime24", "2", "math")),
    "GURU's programs": (
        "codegen.parquet",
        [
            {
                "data_source": "codegen__taco",
                "prompt": MESSAGES,
                "reward_model": {"ground_truth": json.dumps({"inputs": ["1"], "outputs": ["2"]})},
            }
        ],
        "?verifier=python&tests=reward_model.ground_truth",
        ("codegen__taco", None, "python"),
    ),
    "a file of the user's": (
        "mine.jsonl",
        [{"q": "1+1?", "a": "two"}],
        "?prompt=q&answer=a&verifier=exact",
        ("mine", "two", "exact"),
    ),
}


def ran(*line):
    return CliRunner().invoke(app, ["data", *line])


@pytest.mark.parametrize("name", SOURCES)
def test_any_source_becomes_a_file_of_verls(name, tmp_path):
    file, rows, options, (source, answer, verifier) = SOURCES[name]
    path = tmp_path / file
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    done = ran(f"{path}{options}", str(tmp_path / "out.parquet"))
    assert done.exit_code == 0, done.output
    written = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert len(written) == 1
    assert written[0]["data_source"] == source
    assert written[0]["prompt"][0]["role"] == "user"
    assert written[0]["extra_info"]["verifier"] == verifier
    if answer is not None:
        assert written[0]["reward_model"] == {"style": "rule", "ground_truth": answer}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (["embedded", "out.parquet"], "--num says how many"),
        (["gone.jsonl", "out.parquet"], "there is no file gone.jsonl"),
        (["embedded", "out.csv"], "must end with .parquet"),
        (["embedded", "out.parquet", "--format", "yaml"], "--format needs verl"),
    ],
)
def test_what_cannot_be_written_is_a_sentence(line, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = ran(*line)
    assert done.exit_code == 2
    assert sentence in done.stderr
    assert list(tmp_path.iterdir()) == []
