"""What does a comparison leave in its folder, beside its runs?

compare.md, compare.json                 tables, and all numbers behind them
accuracy.svg, accuracy.png               against time, rollouts and tokens
noise.svg, noise.png                     of the gradient, where it was measured
"""

import json
from typing import Any

from poise.lab.compare.figures import accuracy_figure, noise_figure, write_figure
from poise.lab.compare.results import comparison_results, complete_curves
from poise.lab.compare.schedule import Schedule
from poise.lab.compare.tables import markdown
from poise.storage.run_directory import finite


def write_results(schedule: Schedule) -> dict[str, Any]:
    """Write tables and figures of the seeds that are complete, and return the numbers.

    Raises:
        ValueError: If fewer than two seeds are complete in every arm.
        LookupError: If learning rates are not chosen yet.
    """
    results = comparison_results(schedule)
    folder = schedule.path
    (folder / "compare.md").write_text(markdown(results))
    (folder / "compare.json").write_text(json.dumps(finite(results), indent=1, allow_nan=False) + "\n")
    curves, _ = complete_curves(schedule)
    write_figure(accuracy_figure(curves, results), folder, "accuracy")
    noise = noise_figure(curves)
    if noise is not None:
        write_figure(noise, folder, "noise")
    return results
