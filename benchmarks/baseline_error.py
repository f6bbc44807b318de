"""Squared error of each preset's baseline to the true expected reward.

Three steps of 256 new prompts, two rollouts each: the error at the first step, with one earlier step (256 prompts) in
the window, and with two (512). On synthetic rollouts V is known; on frozen rollouts of the embedded model it is the
mean of a prompt's other rollouts, and the noise of that mean is taken off. Rollouts are drawn afresh for every
repetition. The released recipe runs as published, one probe a domain, and with one probe for all; the bar is held
against the better of the two.

    python benchmarks/baseline_error.py [--repetitions 20] [--widths 256 1024 2560] [--rollouts FILE]
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from frozen_rollouts import FrozenRollouts, embedded_policy, frozen_rollouts
from results import interval, markdown_table, save
from synthetic import Rollouts, World, together

import poise

STEPS = ("first step", "window 256", "window 512")
PROMPTS = 256
ARMS: dict[str, poise.Preset] = {
    "none": poise.preset("none"),
    "leave-out mean": poise.preset("poise-value", evidence=("constant", "domain")),
    "rloo": poise.preset("rloo"),
    "shrunk-rloo": poise.preset("shrunk-rloo"),
    "prompt-only": poise.preset("prompt-only"),
    "paper": poise.preset("paper"),
    "released-qwen3-4b": poise.preset("released-qwen3-4b", rloo_steps=1),
    "released-qwen3-4b, one probe": poise.preset("released-qwen3-4b", rloo_steps=1, own_domain=False),
    "released-olmo3-7b": poise.preset("released-olmo3-7b", rloo_steps=1),
    "poise-value": poise.preset("poise-value"),
}
Errors = dict[str, list[list[float]]]
"""For each arm, one list of errors (a step each) for each repetition."""


def synthetic_errors(width: int, shape: str, repetitions: int) -> Errors:
    """Errors on new worlds of one width and one distribution of V."""
    errors: Errors = defaultdict(list)
    for seed in range(repetitions):
        world = World(width=width, shape=shape, seed=seed)
        steps = [world.rollouts(PROMPTS) for _ in STEPS]
        for arm, preset in ARMS.items():
            errors[arm].append(_errors(preset, steps))
        _progress(f"width {width}, {shape}", seed + 1, repetitions)
    return errors


def embedded_errors(frozen: FrozenRollouts, repetitions: int) -> Errors:
    """Errors on the embedded model's rollouts; each repetition is another pair of rollouts of the same prompts."""
    errors: Errors = defaultdict(list)
    for draw in range(repetitions):
        steps, noise = zip(*_drawn_steps(frozen, draw), strict=True)
        for arm, preset in ARMS.items():
            raw = _errors(preset, list(steps))
            errors[arm].append([error - correction for error, correction in zip(raw, noise, strict=True)])
        _progress("embedded model", draw + 1, repetitions)
    return errors


def _drawn_steps(frozen: FrozenRollouts, draw: int) -> Iterator[tuple[Rollouts, float]]:
    num_rollouts = frozen.rewards.shape[1]
    pair = torch.tensor([2 * draw, 2 * draw + 1])
    others = torch.ones(num_rollouts, dtype=torch.bool)
    others[pair] = False
    for k in range(len(STEPS)):
        chosen = slice(k * PROMPTS, (k + 1) * PROMPTS)
        seen = frozen.rewards[chosen][:, others]
        names = [str(p) for p in range(chosen.start, chosen.stop) for _ in pair]
        domains = [domain for domain in frozen.domains[chosen] for _ in pair]
        rewards = frozen.rewards[chosen][:, pair].flatten()
        values = seen.mean(dim=1).repeat_interleave(2)
        noise = float((seen.var(dim=1) / seen.shape[1]).mean())  # E (mean - V)^2
        yield Rollouts(frozen.features(chosen, pair), rewards, values, names, domains), noise


def _errors(preset: poise.Preset, steps: list[Rollouts]) -> list[float]:
    baseline = poise.OnlineBaseline(preset)
    made = [baseline.step(s.features, s.rewards, prompts=s.prompts, domains=s.domains).baselines for s in steps]
    return [float(((b - s.values) ** 2).mean()) for b, s in zip(made, steps, strict=True)]


def nothing_to_know(repetitions: int) -> list[float]:
    """Excess of poise-value's error over the leave-out mean's after five steps, one rate for all prompts."""
    excess = []
    for seed in range(repetitions):
        world = World(width=512, shape="one rate", seed=seed)
        steps = [world.rollouts(PROMPTS) for _ in range(6)]
        known, mean = (_errors(ARMS[arm], steps)[-1] for arm in ("poise-value", "leave-out mean"))
        excess.append(known - mean)
        _progress("nothing to know", seed + 1, repetitions)
    return excess


def two_domains(repetitions: int) -> dict[str, dict[str, list[float]]]:
    """A predictable domain beside an unpredictable one, sixth step: errors in each, of poise-value and simpler arms."""
    arms = ("poise-value", "shrunk-rloo", "leave-out mean")
    errors: dict[str, dict[str, list[float]]] = {"predictable": defaultdict(list), "unpredictable": defaultdict(list)}
    for seed in range(repetitions):
        worlds = {
            "predictable": World(width=512, shape="u-shaped", seed=seed),
            "unpredictable": World(width=512, shape="flat", seed=seed + 1000, predictable=False),
        }
        parts = [{name: w.rollouts(PROMPTS // 2, domain=name) for name, w in worlds.items()} for _ in range(6)]
        alone = {name: _errors(ARMS["poise-value"], [part[name] for part in parts])[-1] for name in worlds}
        for arm in arms:
            baseline = poise.OnlineBaseline(ARMS[arm])
            for part in parts:
                s = together(list(part.values()))
                last = baseline.step(s.features, s.rewards, prompts=s.prompts, domains=s.domains).baselines
            squared = (last - s.values) ** 2
            for k, name in enumerate(worlds):
                errors[name][arm].append(float(squared[k * PROMPTS : (k + 1) * PROMPTS].mean()))
        for name in worlds:
            errors[name]["poise-value, this domain alone"].append(alone[name])
        _progress("two domains", seed + 1, repetitions)
    return errors


def _progress(what: str, done: int, of: int) -> None:
    print(f"\r{what}: {done} of {of} repetitions ", end="" if done < of else "\n", flush=True)


def _cell(samples: list[float]) -> str:
    mean, half = interval(samples)
    return f"{mean:.4f} ± {half:.4f}"


def main() -> None:
    """Run everything, write tables, and say which bars hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 1024, 2560])
    parser.add_argument("--rollouts", type=Path, help="keep (or reuse) the embedded model's rollouts here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = {
        f"width {width}, {shape}": synthetic_errors(width, shape, options.repetitions)
        for width in options.widths
        for shape in ("u-shaped", "flat", "hard")
    }
    frozen = frozen_rollouts(embedded_policy(), PROMPTS * len(STEPS), 2 * options.repetitions, cache=options.rollouts)
    settings["embedded model"] = embedded_errors(frozen, options.repetitions)
    tables, bars = [], []
    for name, errors in settings.items():
        rows = [[arm, *(_cell([run[k] for run in runs]) for k in range(len(STEPS)))] for arm, runs in errors.items()]
        tables.append(f"**{name}**\n\n" + markdown_table(["squared error to V", *STEPS], rows))
        mean = {arm: torch.tensor(runs).mean(dim=0) for arm, runs in errors.items()}
        for k, step in enumerate(STEPS):
            ratio = float(mean["poise-value"][k] / mean["rloo"][k])
            bars.append([name, step, "/ rloo", f"{ratio:.3f}", "<= .25", str(ratio <= 0.25)])
            if k:
                released = min(float(m[k]) for arm, m in mean.items() if arm.startswith("released-qwen3-4b"))
                ratio = float(mean["poise-value"][k]) / released
                bars.append([name, step, "/ released", f"{ratio:.3f}", "<= .7", str(ratio <= 0.7)])
    excess = nothing_to_know(options.repetitions)
    bars.append(
        [
            "one rate for all",
            "after 5 steps",
            "- leave-out mean",
            _cell(excess),
            "<= .0015",
            str(interval(excess)[0] <= 0.0015),
        ]
    )
    domains = two_domains(options.repetitions)
    for name, by_arm in domains.items():
        mean_error = {arm: interval(samples)[0] for arm, samples in by_arm.items()}
        ratio = mean_error["poise-value"] / min(mean_error.values())
        bars.append(
            [f"{name} of two domains", "sixth step", "/ best choice", f"{ratio:.3f}", "<= 1.25", str(ratio <= 1.25)]
        )
        tables.append(
            f"**{name} of two domains, sixth step**\n\n"
            + markdown_table(["arm", "squared error to V"], [[a, _cell(s)] for a, s in by_arm.items()])
        )
    tables.append(
        "**bars for poise-value**\n\n" + markdown_table(["setting", "step", "what", "measured", "bar", "holds"], bars)
    )
    save(
        "baseline_error",
        {"settings": settings, "nothing_to_know": excess, "two_domains": domains, "bars": bars},
        "\n\n".join(tables),
    )


if __name__ == "__main__":
    main()
