"""Everything that poise has to show on a GPU, in one command of at most eight minutes on a bare machine.

Each part is a program of its own with its own time limit; what a part found stays when a later one fails:

    tests      the tests marked `gpu`: hooks, pooling and features in bfloat16, a run of the TRL engine with a resume
    full_size  capture, pooling, entropies, transfer and probe beside the log-prob pass and the update of a model of
               Qwen3-4B's shape with random weights, and the peak memory of both
    overhead   `PoiseTrainer` over `GRPOTrainer` on a model of half a billion parameters: time and peak memory

A bare machine has torch and transformers and no network: what else is missing (TRL, accelerate, datasets, pytest, ...)
is taken from `--wheels`, a folder that `pip download --no-deps` has filled elsewhere, into a folder that goes again.

    python benchmarks/gpu.py [--wheels FOLDER] [--tiny]

`--tiny` runs the same parts on a CPU in small, to try the script itself.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MINUTES = 8.0


def parts(*, tiny: bool) -> dict[str, list[str]]:
    """The programs, in order of worth."""
    tests = ["-m", "pytest", "-q", "-m", "not gpu" if tiny else "gpu", "-k", "bfloat16"]
    files = ["tests/features/test_hidden_states.py", "tests/engines/test_trl_devices.py"]
    sizes = ["--shape", "small", "--completion", "64", "--rollouts", "32"] if tiny else ["--shape", "qwen3-4b"]
    policy = ["--width", "64", "--depth", "2"] if tiny else ["--width", "1536", "--depth", "18"]
    pairs = ["--pairs", "6", "--memory-runs", "1"] if tiny else ["--pairs", "8", "--memory-runs", "2"]
    return {
        "tests": [*tests, *files],
        "full_size": ["benchmarks/full_size.py", *sizes, "--repetitions", "1" if tiny else "3"],
        "overhead": ["benchmarks/overhead.py", *policy, *pairs],
    }


def environment(wheels: Path | None, folder: str) -> dict[str, str]:
    """Variables under which poise and the wheels are found, beside what the machine has."""
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    if wheels is not None:
        if not (found := sorted(map(str, wheels.glob("*.whl")))):
            raise SystemExit(f"--wheels needs a folder that holds wheels, got {wheels}, which holds none")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", folder]
        subprocess.run([*command, *found], check=True)
        paths.insert(1, folder)
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "MPLBACKEND": "Agg"}
    return os.environ | quiet | {"PYTHONPATH": os.pathsep.join(paths)}


def ran(command: list[str], environ: dict[str, str], seconds: float) -> dict[str, Any]:
    """What a part did: how it ended, in how many seconds, and the end of what it printed."""
    began = time.monotonic()
    done = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=environ,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        printed, _ = done.communicate(timeout=seconds)
        ended = "finished" if done.returncode == 0 else f"failed with exit code {done.returncode}"
    except subprocess.TimeoutExpired:
        done.kill()
        printed, _ = done.communicate()
        ended = f"cut off after {seconds:.0f} s"
    print(printed, flush=True)
    return {"ended": ended, "seconds": time.monotonic() - began, "printed": printed[-8000:]}


def main() -> None:
    """Run the parts, and write one JSON and one table with the device's name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    import torch

    if not options.tiny and not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu.py needs a CUDA device, and torch finds none; --tiny tries it on a CPU")
    name = "CPU, tiny" if options.tiny else torch.cuda.get_device_name()
    deadline = time.monotonic() + 60 * MINUTES
    found: dict[str, Any] = {"device": name, "torch": torch.__version__}
    target = RESULTS / ("gpu_tiny" if options.tiny else "gpu")
    with tempfile.TemporaryDirectory() as folder:
        environ = environment(options.wheels, folder)
        if options.tiny:
            environ["CUDA_VISIBLE_DEVICES"] = ""
        for part, command in parts(tiny=options.tiny).items():
            print(f"\n{part} on {name}: python {' '.join(command)}", flush=True)
            found[part] = ran(command, environ, max(1.0, deadline - time.monotonic()))
            RESULTS.mkdir(exist_ok=True)
            target.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
            sections = [f"`python benchmarks/gpu.py` on {name}, torch {torch.__version__}"]
            for each in [part for part in parts(tiny=options.tiny) if part in found]:
                about = f"## {each}: {found[each]['ended']}, {found[each]['seconds']:.0f} s"
                sections.append(f"{about}\n\n```\n{found[each]['printed'].strip()}\n```")
            target.with_suffix(".md").write_text("\n\n".join(sections) + "\n")
    print(f"\nresults: {target}.json and .md")
    if any(found[part]["ended"] != "finished" for part in parts(tiny=options.tiny)):
        raise SystemExit(
            "not every part finished: " + ", ".join(f"{p} {found[p]['ended']}" for p in parts(tiny=options.tiny))
        )


if __name__ == "__main__":
    main()
