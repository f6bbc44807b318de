"""The line that installs poise with a sampler on NVIDIA machines is one that pip's resolver takes, with these versions.

pip reads the metadata of 260 packages from the index for it, and installs nothing: `make test-verl-install`.
"""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PINNED = ROOT / "constraints-verl-nvidia.txt"


def bare(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def documented_line(page):
    """The arguments of pip on a page, with this checkout in the place of the package from the index."""
    line = re.search(r"pip install ('poise-rlvr\[verl[^\n#]*constraints-verl-nvidia\.txt)", page.read_text())[1]
    extras = re.search(r"poise-rlvr(\[.*?\])", line)[1]
    given = [word for word in shlex.split(line) if not word.startswith("poise-rlvr")]
    return ["-e", f"{ROOT}{extras}", *given]


@pytest.mark.parametrize("page", ["docs/guides/verl.md", "docs/engines/verl.md"])
def test_pages_name_the_same_line(page):
    assert documented_line(ROOT / page) == documented_line(ROOT / "docs/guides/verl.md")


@pytest.mark.network
def test_pip_resolves_the_documented_line_to_the_pinned_versions(tmp_path):
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    report = tmp_path / "report.json"
    ran = subprocess.run(
        [*command, f"--report={report}", *documented_line(ROOT / "docs/guides/verl.md")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = {
        bare(each["metadata"]["name"]): each["metadata"]["version"].split("+")[0]
        for each in json.loads(report.read_text())["install"]
    }
    assert found.pop("poise-rlvr")
    pins = [line.split("==") for line in PINNED.read_text().splitlines() if not line.startswith("#")]
    assert found == {bare(name): version for name, version in pins}
    assert {"torch", "vllm", "verl", "math-verify"} <= set(found)
