"""Error of evidence made by a fixed random projection or by principal axes settled on earlier rows.

One step of 256 prompts, two rollouts each, fitted leave-one-prompt-out without a window; the axes are settled on
another 256 prompts. Every arm has the sibling's reward; each gets its best penalty of a grid, so that only the columns
differ. Mean over seeds of the squared error to the true V.

    python benchmarks/projection.py [--seeds 5]
"""

import argparse
from collections import defaultdict
from collections.abc import Callable

import torch
from results import interval, markdown_table, save
from synthetic import World
from torch import Tensor

from poise.baselines import sibling_means
from poise.batch import prompt_groups
from poise.probe.leave_one_out import LeaveOnePromptOut
from poise.probe.principal_axes import principal_axes, projected_states

PENALTIES = (0.3, 3.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
PROMPTS = 256
Map = Callable[[Tensor, Tensor], Tensor]
"""From rows to be mapped, and settled rows of the same kind, to columns."""


def random_directions(size: int) -> Map:
    """Rows scaled and projected on fixed random directions."""
    return lambda rows, settled: projected_states(rows, size=size, seed=0).double()


def settled_axes(components: int, *, white: bool) -> Map:
    """Scores on principal axes of settled rows, after a projection on 256 directions; of unit variance if white."""

    def scores(rows: Tensor, settled: Tensor) -> Tensor:
        rows, settled = (projected_states(part, size=256, seed=0) for part in (rows, settled))
        axes = principal_axes(settled, components=components)
        made = axes.scores(rows)
        return made if white else made / axes.directions.norm(dim=0)

    return scores


ARMS: dict[str, Map | None] = {
    "entropies alone": None,
    **{f"random directions, {k}": random_directions(k) for k in (64, 128, 256)},
    **{f"settled axes, {k}": settled_axes(k, white=True) for k in (16, 32, 64)},
    **{f"settled axes, {k}, not whitened": settled_axes(k, white=False) for k in (16, 64)},
}


def errors(width: int, shape: str, seed: int) -> dict[str, float]:
    """Squared error to V of every arm at its best penalty."""
    world = World(width=width, shape=shape, seed=seed)
    settled, step = world.rollouts(PROMPTS), world.rollouts(PROMPTS)
    groups = prompt_groups(step.prompts)
    everyone = torch.ones(len(groups), dtype=torch.bool)

    def of_siblings(columns: Tensor) -> Tensor:
        return sibling_means(columns.double(), groups, everyone)[0]

    ones = torch.ones(len(groups), 1, dtype=torch.float64)
    scalars = [ones, of_siblings(step.rewards[:, None]) / 2, of_siblings(step.features.entropies)]
    found = {}
    for arm, columns in ARMS.items():
        blocks = [10 * part for part in scalars]
        if columns is not None:
            mine, theirs = step.features, settled.features
            blocks.append(of_siblings(columns(mine.prompt, theirs.prompt)))
            blocks.append(of_siblings(columns(mine.completion, theirs.completion)))
        fit = LeaveOnePromptOut(torch.cat(blocks, dim=1), step.rewards, ones[:, 0], groups)
        predicted = fit.baselines(PENALTIES).clamp(0, 1)
        found[arm] = float(((predicted - step.values) ** 2).mean(dim=1).min())
    return found


def main() -> None:
    """All arms at three widths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    widths = (256, 1024, 2560)
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for shape in ("u-shaped", "flat"):
        for width in widths:
            for seed in range(options.seeds):
                for arm, error in errors(width, shape, seed).items():
                    found[arm][f"{shape}, {width}"].append(error)
            print(f"{shape}, width {width}: done", flush=True)
    settings = list(next(iter(found.values())))
    rows = []
    for arm, by_setting in found.items():
        cells = [interval(by_setting[setting]) for setting in settings]
        rows.append([arm, *(f"{mean:.4f} ± {half:.4f}" for mean, half in cells)])
    save("projection", {"errors": found}, markdown_table(["squared error to V", *settings], rows))


if __name__ == "__main__":
    main()
