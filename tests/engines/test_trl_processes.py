"""Several processes have the advantages of one, know when they do not, and end together.

The cases are in `processes.py`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "processes.py"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def exit_codes(folder: Path, *cases: str) -> tuple[dict[str, list[int]], str]:
    """Of the ranks of each case, and what they said."""
    command = [sys.executable, "-W", "ignore", str(SCRIPT), str(folder), *cases]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=580)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.slow
def test_recorded_rollouts_have_the_same_advantages_on_any_number_of_ranks(tmp_path):
    expected = {
        "1 rank": [0],
        "2 ranks, pairs on both": [0, 0],
        "2 ranks, accumulated": [0, 0],
        "4 ranks, pairs on two": [0, 0, 0, 0],
        "4 ranks, adapter": [0, 0, 0, 0],
    }
    found, said = exit_codes(tmp_path, *expected)
    assert found == expected, said


@pytest.mark.slow
def test_resuming_on_another_number_of_ranks_keeps_the_baseline_exactly(tmp_path):
    expected = {"2 ranks begin": [0, 0], "1 rank resumes": [0], "4 ranks resume": [0, 0, 0, 0]}
    found, said = exit_codes(tmp_path, *expected)
    assert found == expected, said


@pytest.mark.slow
def test_ranks_that_received_different_advantages_end_with_a_sentence(tmp_path):
    found, said = exit_codes(tmp_path, "2 ranks disagree")
    assert found == {"2 ranks disagree": [0, 0]}, said


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_run_with_a_message(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SCRIPT)]
    # Without a prompt end it would wait for the other rank for half an hour, and run into this limit.
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, env=ENVIRONMENT, timeout=580)
    assert done.returncode == 1
    assert "Signal 9 (SIGKILL)" in done.stderr
    assert (tmp_path / "run" / "checkpoint-2").is_dir()
