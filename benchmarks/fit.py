"""The cost of one update and the error of its baseline, beside a refit of the released recipe.

Width 2 x 2560 + 3, a window of 4,096 rows, 512 new rows, one thread. poise: one `OnlineBaseline.step` of preset
`poise` (weighted and unweighted fits of all evidence sets, penalties and axes, baselines, values, state). The released
recipe in scikit-learn: randomized PCA 32/64, StandardScaler and Ridge(100) refitted on the window, batched predictions.
Alternating runs; then errors against the true V on synthetic rollouts and on SmolLM2's hidden states, both given the
same rollouts; then how time and memory grow.

    python benchmarks/fit.py [--repetitions 7] [--real FILE]
"""

import argparse
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from real_states import real_rollouts
from results import interval, markdown_table, save
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from synthetic import Rollouts, World

import poise
from poise import Features

WINDOW, NEW, WIDTH = 4096, 512, 2560


def released_update(window: list[np.ndarray], targets: np.ndarray, batch: list[np.ndarray]) -> np.ndarray:
    """Refit the released recipe on a window and predict a batch, by scikit-learn alone."""
    reductions = [
        PCA(components, svd_solver="randomized", random_state=42).fit(part)
        for components, part in zip((32, 64), window, strict=False)
    ]

    def columns(parts: list[np.ndarray]) -> np.ndarray:
        reduced = [pca.transform(part) for pca, part in zip(reductions, parts, strict=False)]
        return np.concatenate([*reduced, parts[2]], axis=1)

    scaler = StandardScaler().fit(columns(window))
    ridge = Ridge(100.0).fit(scaler.transform(columns(window)), targets)
    return np.clip(ridge.predict(scaler.transform(columns(batch))), 0, 1)


def parts_of(features: Features) -> list[np.ndarray]:
    """The three parts as arrays."""
    return [part.numpy() for part in (features.prompt, features.completion, features.entropies)]


def rows_of(rollouts: Rollouts, rows: slice) -> Rollouts:
    """Some rows of one draw."""
    f = rollouts.features
    features = Features(f.prompt[rows], f.completion[rows], f.entropies[rows], f.missing[rows])
    return Rollouts(
        features, rollouts.rewards[rows], rollouts.values[rows], rollouts.prompts[rows], rollouts.domains[rows]
    )


def rotated(rollouts: Rollouts, by: int) -> Rollouts:
    """The same rows, those at `by` first."""
    order = torch.arange(len(rollouts.rewards)).roll(-by)
    f = rollouts.features
    features = Features(f.prompt[order], f.completion[order], f.entropies[order], f.missing[order])
    names = [rollouts.prompts[k] for k in order.tolist()]
    return Rollouts(features, rollouts.rewards[order], rollouts.values[order], names, rollouts.domains)


def filled_baseline(rollouts: Rollouts, preset: poise.Preset) -> poise.OnlineBaseline:
    """A baseline whose window holds these rollouts, 512 a step."""
    baseline = poise.OnlineBaseline(preset)
    for start in range(0, len(rollouts.rewards), NEW):
        step = rows_of(rollouts, slice(start, start + NEW))
        baseline.step(step.features, step.rewards, prompts=step.prompts, weights=torch.ones(len(step.rewards)))
    return baseline


def restored(state: dict[str, object], preset: poise.Preset) -> poise.OnlineBaseline:
    """A baseline in a saved state."""
    baseline = poise.OnlineBaseline(preset)
    baseline.load_state_dict(state)
    return baseline


def seconds(run: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def swapped(values: np.ndarray) -> np.ndarray:
    """Each rollout's sibling's entry, siblings being neighbours."""
    return values.reshape(-1, 2)[:, ::-1].reshape(-1)


def measured_errors(rollouts: Rollouts) -> tuple[float, float]:
    """MSE to V of poise-value and of the released recipe on the last 512 rows, the rows before them in the window."""
    window, batch = rows_of(rollouts, slice(0, WINDOW)), rows_of(rollouts, slice(WINDOW, WINDOW + NEW))
    baseline = filled_baseline(window, poise.preset("poise-value"))
    ours = baseline.step(batch.features, batch.rewards, prompts=batch.prompts).values
    targets = swapped(window.rewards.numpy())
    theirs = swapped(released_update(parts_of(window.features), targets, parts_of(batch.features)))
    truth = batch.values.numpy()
    return float(((ours.numpy() - truth) ** 2).mean()), float(((theirs - truth) ** 2).mean())


def growth(repetitions: int) -> list[list[str]]:
    """Seconds a step, bytes of state and peak memory against window rows, width and group size."""
    table = []
    settings = [(rows, 256, 2) for rows in (1_000, 10_000, 100_000)]
    settings += [(4_096, width, 2) for width in (576, 2_560, 5_120)] + [(4_096, 256, g) for g in (4, 8)]
    for rows, width, group_size in settings:
        preset = poise.preset("poise", window_rows=rows)
        world = World(width=width, shape="flat", seed=0)
        baseline = poise.OnlineBaseline(preset)
        held = 0
        while held < rows:  # large steps fill large windows quickly
            size = min(rows - held, 8192) // group_size * group_size or group_size
            step = world.rollouts(size // group_size, group_size=group_size)
            baseline.step(step.features, step.rewards, prompts=step.prompts)
            held += size
        times = []
        for _ in range(repetitions):
            step = world.rollouts(NEW // group_size, group_size=group_size)
            times.append(seconds(partial(baseline.step, step.features, step.rewards, prompts=step.prompts)))
        state = sum(v.numel() * v.element_size() for v in baseline.state_dict().values() if isinstance(v, torch.Tensor))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        row = [
            f"{rows:,}",
            f"2 x {width:,}",
            str(group_size),
            f"{np.median(times):.3f}",
            f"{state / 2**20:.1f}",
            f"{peak:,.0f}",
        ]
        table.append(row)
        print("grown to", *row, flush=True)
    return table


def main() -> None:
    """Time, errors, growth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--real", type=Path, help="keep (or reuse) SmolLM2's states here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    preset = poise.preset("poise", window_rows=WINDOW)
    world = World(width=WIDTH, shape="flat", seed=0)
    rollouts = world.rollouts((WINDOW + NEW) // 2)
    window, batch = rows_of(rollouts, slice(0, WINDOW)), rows_of(rollouts, slice(WINDOW, WINDOW + NEW))
    weights = torch.rand(NEW, dtype=torch.float64) * 10
    state = filled_baseline(window, preset).state_dict()
    targets = swapped(window.rewards.numpy())
    ours, theirs = [], []
    for k in range(options.repetitions):
        baseline = restored(state, preset)
        update = partial(baseline.step, batch.features, batch.rewards, prompts=batch.prompts, weights=weights)
        ours.append(seconds(update))
        theirs.append(seconds(partial(released_update, parts_of(window.features), targets, parts_of(batch.features))))
        print(
            f"update {k + 1} of {options.repetitions}: poise {ours[-1]:.3f} s, released {theirs[-1]:.3f} s", flush=True
        )
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    times = markdown_table(
        ["one update", "seconds, median", "released / poise, median and range"],
        [
            [
                "poise (both fits)",
                f"{np.median(ours):.3f}",
                f"{np.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})",
            ],
            ["released recipe, scikit-learn", f"{np.median(theirs):.3f}", "1"],
        ],
    )
    errors: dict[str, list[tuple[float, float]]] = {}
    for shape in ("u-shaped", "flat"):
        worlds = (World(width=WIDTH, shape=shape, seed=seed) for seed in range(3))
        errors[f"synthetic, {shape}"] = [measured_errors(w.rollouts((WINDOW + NEW) // 2)) for w in worlds]
    real = real_rollouts((WINDOW + NEW) // 2, cache=options.real)
    folds = (WINDOW + NEW) // NEW
    errors["SmolLM2's states, every ninth held out in turn"] = [
        measured_errors(rotated(real, k * NEW)) for k in range(folds)
    ]
    rows = []
    for name, pairs in errors.items():
        (a, _), (b, _) = (interval([pair[k] for pair in pairs]) for k in (0, 1))
        excess, half = interval([mine - other for mine, other in pairs])
        rows.append([name, str(len(pairs)), f"{a:.4f}", f"{b:.4f}", f"{a / b:.2f}", f"{excess:.4f} ± {half:.4f}"])
    header = ["squared error to V, window 4,096", "draws", "poise-value", "released", "ratio", "difference"]
    quality = markdown_table(header, rows)
    grown = growth(5)
    header = ["window rows", "width", "G", "seconds a step (512 new rows)", "state, MiB", "process peak so far, MiB"]
    table = "\n\n".join([times, quality, markdown_table(header, grown)])
    save("fit", {"poise_seconds": ours, "released_seconds": theirs, "errors": errors, "growth": grown}, table)


if __name__ == "__main__":
    main()
