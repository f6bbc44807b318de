"""A day of accidents in ten minutes, with a summary of counts.

    python scripts/soak.py --minutes 10 --seed 0

In turn, until the time is up: fuzzed steps of every preset (baselines are finite, a rollout's reward does not move its
own baseline where the preset promises it, a saved state goes on exactly); property tests with examples drawn anew;
checkpoints and side files of which a bit is flipped, or which are cut, emptied or gone (the run goes on, is shown and
measured, or is refused in a sentence); runs that are killed or started several times at once (they end bit-identical);
and hostile completions (no reward, and a known cause).
"""

import argparse
import math
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import race_runs
import torch
from kill_and_resume import NAME

import poise
from poise.engines.trl.checkpoints import checkpoints
from poise.features.rollout_features import SEGMENTS
from poise.presets import PRESETS
from poise.rewards import Grader
from poise.storage import checksums
from poise.tasks.problem import Problem

LARGEST_MOVE = 1e-6
"""Of the rewards' range: how far a rollout's own reward may move its baseline."""
UNIT = 20
"""Fuzzed steps, or hostile completions, between two of the longer accidents."""
ROOT = Path(__file__).parents[1]
PROPERTIES = [path for path in sorted(ROOT.glob("tests/**/*.py")) if "@given" in path.read_text()]
"""Tests that draw examples."""
PROGRAM = Problem("q", "", "c", verifier="python", details='{"tests": ["assert f(2) == 4", "assert f(3) == 9"]}')
SUM = Problem("q", "\\boxed{7}", "m", verifier="math")
CAUSES = {"", "program failed", "program timed out", "program printed too much", "memory limit", "time limit"}
CAUSES |= {"verifier raised"}
PIECES = ["```python\n", "```\n", "<think>", "</think>", "<answer>", "\\boxed{", "{" * 500, "(" * 3000, "\\frac", "\0"]
PIECES += ["9" * 5000, "-" * 9999, "^" * 300, "x**", "~~~\n", "\r\n", "$$", "=", "\ud800", "def f(x):\n"]
PIECES += ["    return f(x)\n", "    return [x] * 10**10\n", "    while True: pass\n", "print('x' * 10**9)\n"]
PIECES += ["import os\nos.fork()\n", "raise SystemExit\n", "\x1b[31m", "\u202e"]


class Accident(Exception):
    """Something that must not happen; the message says what."""


def fuzzed_step(random_: random.Random) -> str:
    """Steps of a preset on anything that is allowed."""
    name = random_.choice(sorted(set(PRESETS) - {"same-rollout"}))
    prompts, rollouts = random_.randint(1, 12), random_.choice([1, 2, 2, 4, 8])
    scale = 10.0 ** random_.randint(-3, 4)
    generator = torch.Generator().manual_seed(random_.randrange(2**31))
    num = prompts * rollouts

    def drawn(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    def batch() -> tuple[poise.Features, torch.Tensor]:
        missing = torch.rand(num, len(SEGMENTS), generator=generator) < 0.05
        features = poise.Features(
            prompt=drawn(num, 12), completion=drawn(num, 12), entropies=drawn(num, 3).abs(), missing=missing
        )
        rewards = scale * torch.rand(num, generator=generator)
        rewards[torch.rand(num, generator=generator) < random_.choice([0.0, 0.1, 0.9])] = math.nan
        return features, rewards

    ids = [f"prompt {number % prompts}" for number in range(num)]
    weights = torch.rand(num, generator=generator) * 10.0 ** random_.randint(-2, 2)
    preset = poise.preset(name)
    baseline, other = poise.OnlineBaseline(preset), poise.OnlineBaseline(preset)
    for _ in range(random_.randint(1, 3)):
        features, rewards = batch()
        try:
            step = baseline.step(features, rewards, prompts=ids, weights=weights)
        except ValueError as error:
            if rollouts == 1 and "needs at least 2 rollouts per prompt" in str(error):
                return "steps of one rollout a prompt, refused"
            raise
        other.step(features, rewards, prompts=ids, weights=weights)
    if not torch.isfinite(torch.as_tensor(step.baselines)).all():
        raise Accident(f"{name}: a baseline is not finite")
    features, rewards = batch()
    again = poise.OnlineBaseline(preset)
    again.load_state_dict(baseline.state_dict())
    step = baseline.step(features, rewards, prompts=ids, weights=weights)
    resumed = again.step(features, rewards, prompts=ids, weights=weights)
    if not torch.equal(torch.as_tensor(step.baselines), torch.as_tensor(resumed.baselines)):
        raise Accident(f"{name}: a saved state went on differently")
    place = random_.randrange(num)
    if preset.exact and not rewards[place].isnan():
        changed = rewards.clone()
        changed[place] = scale * random_.random()
        moved = other.step(features, changed, prompts=ids, weights=weights)
        far = abs(float(step.baselines[place]) - float(moved.baselines[place])) / scale
        if far > LARGEST_MOVE:
            raise Accident(f"{name}: a rollout moved its own baseline by {far:.1e} of the rewards' range")
    return f"fuzzed steps of {name}"


def fresh_draws(random_: random.Random) -> str:
    """The property tests, with other examples than those that are always drawn."""
    seed = random_.randrange(2**31)
    options = ["-q", "-p", "no:cacheprovider", "--hypothesis-profile=fresh", f"--hypothesis-seed={seed}"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        *options,
        "-m",
        "hypothesis and not slow and not gpu",
        *map(str, PROPERTIES),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Accident(f"property tests with seed {seed}: {done.stdout[-3000:]}")
    return "rounds of property tests with examples drawn anew"


def interrupted(reference: Path, output: Path) -> Path:
    """A copy of the run in peace without its end, as if it had been stopped before its last checkpoint."""
    run = Path(shutil.copytree(reference, output / NAME))
    (run / "summary.json").unlink()
    (run / "report.html").unlink()
    shutil.rmtree(checkpoints(run / "checkpoints")[-1])
    return run


def damage(path: Path, random_: random.Random) -> str:
    """Spoil a file; how."""
    content = bytearray(path.read_bytes())
    how = random_.choice(["a flipped bit", "cut", "gone", "zeros", "bad UTF-8", "a bad line", "renamed"])
    at = random_.randrange(max(1, len(content)))
    if how == "gone":
        path.unlink()
    elif how == "renamed":
        path.rename(path.with_name(f"{path.name}.old"))
    elif how == "a flipped bit":
        content[at : at + 1] = bytes([content[at] ^ 1 << random_.randrange(8)]) if content else b""
        path.write_bytes(content)
    else:
        other = {
            "cut": bytes(content[:at]),
            "zeros": bytes(len(content)),
            "bad UTF-8": bytes(content[:at]) + b"\xff\xfe",
        }
        path.write_bytes(other.get(how, content + b'{"step": [\n{"step": 1e999}\n[]\n'))
    return how


def damaged_file(random_: random.Random, folder: Path, *, of_checkpoint: bool) -> str:
    """A file of a finished or an interrupted run is damaged; the run is resumed, shown and measured."""
    output = folder / f"damaged-{random_.randrange(10**9)}"
    finished = not of_checkpoint and random_.random() < 0.5
    run = output / NAME
    if finished:
        shutil.copytree(folder / "peace" / NAME, run)
    else:
        interrupted(folder / "peace" / NAME, output)
    files = sorted(path for path in run.rglob("*") if path.is_file())
    newest = checkpoints(run / "checkpoints")[-1]
    victim = random_.choice([path for path in files if (newest in path.parents) == of_checkpoint])
    how = damage(victim, random_)
    if of_checkpoint and random_.random() < 0.3 and newest.is_dir():
        checksums.write_checksums(newest)  # damage that digests do not see
        how += " with digests to match"
    commands = [["report", str(run)], ["eval", str(run), "--prompts", "4", "--k", "2", "--output", f"{output}/eval"]]
    commands = [*([] if of_checkpoint else random_.sample(commands, 2)), race_runs.training(output)]
    for arguments in commands:
        try:
            code, _ = race_runs.ended(race_runs.started(arguments, output / f"{arguments[0]}.log"))
        except race_runs.RaceLost as error:
            raise Accident(f"{victim.relative_to(output)} {how}: {error}") from error
    shutil.rmtree(output)
    kind = "checkpoints" if of_checkpoint else f"files of {'finished' if finished else 'interrupted'} runs"
    return f"{kind} damaged, {'gone on with' if code == 0 else 'refused in a sentence'}"


def raced_runs(random_: random.Random, folder: Path) -> str:
    """A run is begun, killed or not, and started once or twice more meanwhile."""
    race = random_.choice(list(race_runs.races(3, seed=random_.randrange(2**31))))
    output = folder / f"raced-{random_.randrange(10**9)}"
    try:
        race_runs.raced(output, race, folder / "peace" / NAME)
    except race_runs.RaceLost as error:
        raise Accident(f"{race}: {error}") from error
    shutil.rmtree(output)
    return f"runs {'killed and ' if race.killed else ''}raced, ended bit-identical"


def hostile_rewards(random_: random.Random) -> str:
    """Completions of hostile pieces, graded as programs and as answers."""
    texts = ["".join(random_.choices(PIECES, k=random_.randint(1, 12))) for _ in range(UNIT)]
    problems = [random_.choice([PROGRAM, SUM]) for _ in texts]
    with Grader(seconds_a_rollout=2.0, workers=2) as grader:
        verdicts = grader.verdicts(texts, problems)
    for text, verdict in zip(texts, verdicts, strict=True):
        if verdict.reward != 0.0 or verdict.cause not in CAUSES:
            raise Accident(f"{text!r:.300} got {verdict}")
    return f"batches of {UNIT} hostile completions"


def main() -> None:
    """Go through accidents in turn, and count how they ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None, help="Default: another one each time.")
    asked = parser.parse_args()
    seed = random.SystemRandom().randrange(2**31) if asked.seed is None else asked.seed
    random_, ended, failures = random.Random(seed), Counter[str](), list[str]()
    race_runs.prepare()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        race_runs.in_peace(folder / "peace")
        steps: list[Callable[[], str]] = [lambda: fuzzed_step(random_)] * UNIT
        turn: list[Callable[[], str]] = [lambda: fresh_draws(random_)]
        for _ in range(3):
            turn += [*steps, lambda: damaged_file(random_, folder, of_checkpoint=True)]
            turn += [*steps, lambda: damaged_file(random_, folder, of_checkpoint=False)]
            turn += [*steps, lambda: raced_runs(random_, folder)]
            turn += [*steps, lambda: hostile_rewards(random_)]
        end, number = time.monotonic() + 60 * asked.minutes, 0
        while time.monotonic() < end:
            try:
                ended[turn[number % len(turn)]()] += 1
            except Exception as error:
                failures.append(str(error) if isinstance(error, Accident) else traceback.format_exc())
                print(f"FAILED: accident {number}: {failures[-1]}", flush=True)
            number += 1
    for what, count in sorted(ended.items()):
        print(f"{count:6} {what}")
    print(f"{number} accidents in {asked.minutes:g} minutes with seed {seed}, {len(failures)} failures")
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
