"""Text of data, files and arguments in a terminal and on a page: it is shown as text, and does nothing."""

import json
import unicodedata
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from poise.cli import app
from poise.storage.shown_text import MOST_MARKS, shortened, spelled_out

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]

NAME = "[bold]\x1b[31m\u202e\x07a" + "\u0301" * 9
"""Of a file, and of a run: markup, an escape sequence, and stacked marks."""
DOMAIN = f"[/math]{NAME}"
"""With markup that ends what never began."""
LONG = "x" * 2**20
LONGEST_LINE = 6000


def poise(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


def fault(text: str) -> str | None:
    """What of a text should not reach a terminal."""
    kinds = [unicodedata.category(character) if character not in "\n\t" else "L" for character in text]
    marks = "".join("m" if kind in ("Mn", "Me") else " " for kind in kinds)
    if hidden := [character for character, kind in zip(text, kinds, strict=True) if kind in ("Cc", "Cf", "Zl", "Zp")]:
        return f"has {hidden[0]!r}"
    if "m" * (MOST_MARKS + 1) in marks:
        return "has stacked marks"
    longest = max(map(len, text.splitlines()), default=0)
    return f"has a line of {longest} characters" if longest > LONGEST_LINE else None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task, a broken task and a finished run on the task."""
    folder = tmp_path_factory.mktemp("hostile")
    rows = [{"prompt": f"sum {n}+1", "answer": str(n + 1), "note": DOMAIN + LONG * (n == 0)} for n in range(90)]
    (folder / f"{NAME}.jsonl").write_text("\n".join(json.dumps(row | {"domain": DOMAIN}) for row in rows))
    (folder / f"{NAME}-cut.jsonl").write_text(f'{{"prompt": "{LONG}')
    (folder / "topics.jsonl").write_text(json.dumps(rows[1] | {"domain": NAME + LONG}))
    short = ["--steps", "2", "--eval-prompts", "4", "--check-every", "0", "--per-device-train-batch-size", "4"]
    run = poise("train", "--task", f"{folder}/{NAME}.jsonl", *short, "--output", str(folder), "--name", NAME)
    assert run.exit_code == 0, run.output
    (folder / "printed.txt").write_text(run.output)
    return folder


def test_a_run_prints_text_and_its_page_holds_text(folder: Path):
    printed = (folder / "printed.txt").read_text()
    assert fault(printed) is None
    assert spelled_out(NAME) in printed
    page = (folder / NAME / "report.html").read_text()
    assert fault(page.replace("\n", " ")[:LONGEST_LINE]) is None
    assert not set(page) & set("\x1b\u202e\x07")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["data", "{name}.jsonl", "{out}/{name}.parquet"], 0),
        (["data", "{name}-cut.jsonl", "{out}/x.parquet"], 2),
        (["data", "topics.jsonl", "{out}/x.parquet"], 2),
        (["eval", "{name}", "--prompts", "2", "--k", "2", "--output", "{out}"], 0),
        (["eval", "--task", "{name}-cut.jsonl"], 2),
        (["eval", "--model", f"{NAME}?"], 2),
        (["eval", LONG[:100_000]], 2),
        (["report", "{name}", "--output", "{out}/{name}.html"], 0),
        (["report", "{name}-gone"], 2),
        (["study", "--rollouts", "{name}/rollouts/step-000001.parquet"], 2),
        (["study", "--task", "{name}-cut.jsonl"], 2),
        (["compare", "--task", "{name}-cut.jsonl", "--output", "{out}/compare"], 2),
        (["compare", "--arms", NAME], 2),
        (["doctor", "--task", "{name}.jsonl"], 0),
        (["doctor", "{name}"], 0),
        (["train", "--task", "{name}-cut.jsonl"], 2),
        (["train", "--model", LONG], 2),
        (["train", f"--{NAME}", "1"], 2),
        (["train", "--name", f"../{NAME}"], 2),
        (["train", "--name", ".."], 2),
        ([NAME], 2),
        (["eval", "--k", NAME], 2),
    ],
)
def test_commands_show_text_as_text(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int
):
    monkeypatch.chdir(folder)
    filled = [each.replace("{name}", NAME).replace("{out}", str(tmp_path)) for each in arguments]
    result = poise(*filled)
    assert isinstance(result.exception, SystemExit | None), result.exception
    assert fault(result.output) is None
    assert result.exit_code == code, result.output


def test_marks_are_spelled_out_and_letters_are_not():
    plain = "Grüße, école, 数学 한국어 עברית שָׁלוֹם ไทยที่ é e\u0301\u0302 👍\n\tend"
    assert spelled_out(plain) == plain
    assert spelled_out("\x1b[31m\u202e\u2028\ud800") == "\\u001b[31m\\u202e\\u2028\\ud800"
    assert spelled_out("a" + "\u0301" * 6) == "a" + "\u0301" * 4 + "\\u0301" * 2
    assert shortened("a" * 10, 4) == "aa[… 6 left out …]aa"
    assert shortened("a" * 4, 4) == "aaaa"
