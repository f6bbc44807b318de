"""What an installation without extras says."""

import subprocess
import sys

import pytest

# A finder that hides a package, as if it had never been installed.
HIDING = """
import sys
class Hiding:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hiding())
"""


@pytest.mark.parametrize(
    ("hidden", "statement", "who", "extra"),
    [
        ("typer", "from poise.__main__ import main; main()", "poise: the command", "train"),
        ("trl", "import poise.engines.trl", "poise.engines.trl", "trl"),
        ("sklearn", "import poise; poise.OnlineBaseline(poise.preset('paper'))", "a published preset", "trl"),
    ],
)
def test_a_missing_extra_is_one_sentence_with_the_line_to_type(hidden, statement, who, extra):
    script = HIDING.format(hidden=hidden) + statement
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    said = done.stderr.strip().splitlines()[-1].removeprefix("ModuleNotFoundError: ")
    assert said == f"{who} needs {hidden}, which is not installed: pip install 'poise-rlvr[{extra}]'"
