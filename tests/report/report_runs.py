"""Runs that the tests of the page look at."""

import math

from poise.storage.run_directory import RunDirectory

HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}\u202egnp\x00\x1b[31m"


def pair_batch(directory, step, rewards, **columns):
    """One generation batch, two rollouts a prompt."""
    n = len(rewards)
    given = {
        "prompts": [f"prompt {step}.{row // 2}" for row in range(n)],
        "completions": [f"completion {step}.{row}" for row in range(n)],
        "domains": ["sum"] * n,
        "values": [0.5] * n,
        "baselines": [0.25] * n,
    } | columns
    advantages = [0.0 if r != r else r - b for r, b in zip(rewards, given["baselines"], strict=True)]
    return directory.write_rollouts(step, rewards=rewards, advantages=advantages, **given)


def finished_run(path):
    """A short run that is finished, in whose steps a model wrote something hostile and something was not graded."""
    directory = RunDirectory.create(path)
    directory.write_config({"preset": "poise", "model": "embedded", "note": HOSTILE[:20]})
    held_out = {"held_out/prompts": 100}
    directory.append_metrics(
        {"step": 0, "rollouts": 0, "held_out/accuracy": 0.25, "held_out/accuracy/sum": 0.25} | held_out
    )
    for step in (1, 2):
        line = {"step": step, "rollouts": 8 * step, "reward": 0.5, "poise/noise_ceiling": 0.4, "entropy": 0.5}
        line |= {"poise/variance_reduction": 0.3, "poise/value_error": 0.0123, "completions/clipped_ratio": 0.125}
        line["in_charge"] = {"sum": "sibling_reward (penalty 1, all rows)", "<u>\u202e": "all (penalty 1, all rows)"}
        measured = {"held_out/accuracy": 0.75, "held_out/accuracy/sum": 0.75} | held_out
        directory.append_metrics(line | (measured if step == 2 else {}))
        pair_batch(
            directory,
            step,
            [1.0, 0.0, 0.0, math.nan],
            prompts=["p1", "p1", "<i>p2</i>", "<i>p2</i>"],
            completions=["one", "two", HOSTILE, "three"],
            domains=["sum", "sum", "<u>", "<u>"],
            values=[0.5, 0.25, 0.75, 0.5],
            baselines=[0.5, 0.25, 0.75, 0.5],
            answers=["4", "4", None, None],
            parts=[{"right": 1.0, "short": 0.5}, {}, {}, {}],
            truncated=[False, False, True, False],
            weights=[1.0, 2.0, 3.0, 4.0],
            token_entropies=[([2, 1], [0.5, 1.0]), None, None, None],
        )
    directory.ungradable.write_text('{"step": 2, "cause": "worker lost", "completion": "three"}\n{"step": 2, "cau')
    summary = {"steps": 2, "rollouts": 16, "stopped_early": False, "preset": "poise", "versions": {"torch": "2.13.0"}}
    directory.write_summary(summary)
    return directory
