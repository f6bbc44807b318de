"""Runs that start, end and are killed while others start: nothing is lost, and each says how it ended."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("races", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_runs_that_race_end_as_one_in_peace(races: int):
    script = Path(__file__).parents[2] / "scripts" / "race_runs.py"
    done = subprocess.run([sys.executable, script, "--races", str(races)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.match(rf"{races} of {races} races ended as a run in peace; of their processes ", done.stdout)
