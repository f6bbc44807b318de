"""What a comparison leaves in its folder, beside its runs.

compare.md, compare.json                 tables, and all numbers behind them
accuracy.svg, accuracy.png               against time, rollouts and tokens
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from poise.evaluate.statistics import smoothed
from poise.evaluate.tables import NONE, markdown_table, with_interval
from poise.lab.compare.arms import arm_named
from poise.lab.compare.results import Curve, comparison_results, complete_curves
from poise.lab.compare.schedule import Schedule
from poise.report.plots import INK, colour, dress, write_figure
from poise.storage.rollouts import finite

_AXES = {"seconds": "training time, seconds", "rollouts": "rollouts sampled", "tokens": "tokens generated"}


def write_results(schedule: Schedule) -> dict[str, Any]:
    """Write tables and figures of the seeds that are complete, and return the numbers.

    Raises:
        ValueError: If fewer than two seeds are complete in every arm.
        LookupError: If learning rates are not chosen yet.
    """
    results = comparison_results(schedule)
    (schedule.path / "compare.md").write_text(markdown(results))
    (schedule.path / "compare.json").write_text(json.dumps(finite(results), indent=1, allow_nan=False) + "\n")
    curves, _ = complete_curves(schedule)
    write_figure(accuracy_figure(curves, results), schedule.path, "accuracy")
    return results


def markdown(results: Mapping[str, Any]) -> str:
    """All tables, with a sentence on what each says."""
    parts = (_head, _accuracy, _time, _sharpness, _sampling, _learning_rates)
    return "\n\n".join(part(results).strip() for part in parts) + "\n"


def shown(interval: Mapping[str, float] | None, *, digits: int = 3, sign: bool = False) -> str:
    """A value and its interval."""
    if interval is None:
        return NONE
    return with_interval(interval["value"], (interval["low"], interval["high"]), digits=digits, sign=sign)


def _head(results: Mapping[str, Any]) -> str:
    conditions, seeds = results["conditions"], results["seeds"]
    arms = "\n".join(f"- `{name}`: {arm_named(name).about}" for name in results["arms"])
    beside = results["side_by_side"]
    ran = " Runs came one after another." if beside == [1] else f" Runs side by side: {', '.join(map(str, beside))}."
    return (
        f"# Comparison of {', '.join(results['arms'])}\n\n"
        f"{len(seeds)} seeds; {conditions['rollouts']:,} rollouts a run (the batch that passes the mark is the last), "
        f"{conditions['batch_rollouts']} in a generation batch, {conditions['batch_updates']} updates each; accuracy "
        f"on {conditions['eval_prompts']} held-out prompts, {results['accuracy_before']:.3f} before training.{ran} "
        f"Intervals are 95 %, over seeds; arms are compared seed by seed.\n\n{arms}"
    )


def _accuracy(results: Mapping[str, Any]) -> str:
    reference, twice, equal = results["reference"], results["twice"], results["equal"]
    heads = ["arm", "final accuracy", f"minus `{reference}`", "verdict", f"at {equal['seconds']:.0f} s"]
    heads += [f"at {equal['tokens']:,.0f} tokens", "updates", "seconds", "tokens"]
    rows = [
        [
            f"`{name}`",
            shown(arm["final_accuracy"]),
            "" if name == reference else shown(arm["difference"], sign=True),
            arm["verdict"],
            shown(arm["accuracy_at_equal"]["seconds"]),
            shown(arm["accuracy_at_equal"]["tokens"]),
            f"{arm['updates']:.0f}",
            f"{arm['seconds']:.0f}",
            f"{arm['tokens']:,.0f}",
        ]
        for name, arm in results["arms"].items()
    ]
    return (
        "## Held-out accuracy\n\n"
        "Means of three evaluations: at the end of a run, and at the time and the tokens that every run has reached. "
        f"Two runs of `{twice['arm']}` that differ in the seed of sampling alone are {twice['accuracy_floor']:.3f} "
        "apart by chance (mean over seeds, 95 %); nothing within that is called a difference.\n\n"
        f"{markdown_table(heads, rows)}"
    )


def _time(results: Mapping[str, Any]) -> str:
    reference, clocks = results["reference"], ("seconds", "tokens", "rollouts")
    heads = ["arm", "reached"]
    for clock in clocks:
        heads += [f"{clock}: mean (median)", f"/ `{reference}`"]
    compared = {f"`{name}`": arm["time_to_target"] for name, arm in results["arms"].items()}
    compared[f"`{results['twice']['arm']}` / itself"] = results["twice"]["time_to_target"]
    rows = []
    for label, times in compared.items():
        row = [label, f"{times['seconds']['reached']} of {times['seconds']['runs']}"]
        for found in map(times.__getitem__, clocks):
            median = NONE if found["median"] is None else f"{found['median']:,.0f}"
            said = found.get("verdict", "chance")
            row.append(f"{found['restricted_mean']:,.0f} ({median})")
            row.append("1" if said == "reference" else f"{shown(found['ratio'], digits=2)}, {said}")
        rows.append(row)
    return (
        f"## Time to `{reference}`'s final accuracy, {results['target']:.3f}\n\n"
        "The first time at which the mean of three evaluations is that high. Runs that end before it are censored: "
        "means and medians are Kaplan and Meier's, means restricted to the time up to which both arms are known; a "
        "dash says that half of the runs never got there. The last line compares an arm with itself.\n\n"
        f"{markdown_table(heads, rows)}"
    )


def _sharpness(results: Mapping[str, Any]) -> str:
    sets = {"before training": results["sharpness_before"]} | {f"`{n}`": a for n, a in results["arms"].items()}
    known = [each["pass_at"] for each in sets.values() if each["pass_at"] is not None]
    sizes = [k for k in (known[0] if known else {}) if k in ("1", "8", "16")]
    rows = []
    for name, each in sets.items():
        entropies = [each.get("entropy_at_target"), each.get("entropy")]
        rows.append([name, *(shown(None if each["pass_at"] is None else each["pass_at"][k]) for k in sizes)])
        rows[-1] += [shown(each["distinct_answers"], digits=2)]
        rows[-1] += [NONE if entropy is None else f"{entropy:.3f}" for entropy in entropies]
    heads = ["arm", *(f"pass@{k}" for k in sizes), "distinct answers a prompt"]
    heads += [f"entropy at {results['target']:.3f}, nats", "entropy at the end, nats"]
    return (
        "## Sharpening\n\n"
        f"{results['conditions']['completions']} completions of each held-out prompt at the end of a run, sampled as "
        "in training. Entropies are means over sampled tokens in training, at equal accuracy and at the end.\n\n"
        f"{markdown_table(heads, rows)}"
    )


def _sampling(results: Mapping[str, Any]) -> str:
    heads = ["arm", "prompts with zero advantage", "tokens sampled for them", "tokens dropped with a signal"]
    heads += ["memory of training, MiB", "of it a critic's weights and moments"]
    rows = [
        [
            f"`{name}`",
            *(f"{arm[each]:.1%}" for each in ("zero_advantage_prompts", "zero_advantage_tokens", "surplus_tokens")),
            f"{arm['memory_mib_of_training']:,.0f}",
            f"{arm['critic_mib']:,.0f}",
        ]
        for name, arm in results["arms"].items()
    ]
    return f"## Where sampling goes\n\n{markdown_table(heads, rows)}"


def _learning_rates(results: Mapping[str, Any]) -> str:
    arms = results["arms"]
    rates = sorted({rate for arm in arms.values() for rate in arm["learning_rates_tried"]}, key=float)
    if not rates:
        return f"All arms have the learning rate {next(iter(arms.values()))['learning_rate']:g}.\n"
    rows = []
    for name, arm in arms.items():
        scores = [arm["learning_rates_tried"].get(rate) for rate in rates]
        rows.append([f"`{name}`", f"{arm['learning_rate']:g}"])
        rows[-1] += [NONE if score is None else f"{score:.3f}" for score in scores]
    return (
        "## Learning rates\n\nFinal accuracy on seeds that are used for nothing else; the best one was taken.\n\n"
        f"{markdown_table(['arm', 'taken', *rates], rows)}"
    )


def accuracy_figure(curves: Mapping[str, Sequence[Curve]], results: Mapping[str, Any]) -> Figure:
    """Held-out accuracy against time, rollouts and tokens; dashed: what the reference arm ends at.

    A line is the mean over seeds, as far as all runs go; its band runs from the lowest seed to the highest.
    """
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for axes, (clock, label) in zip(panels, _AXES.items(), strict=True):
        for place, (arm, runs) in enumerate(curves.items()):
            times = [each.times(clock) for each in runs]
            grid = np.linspace(max(each[0] for each in times), min(each[-1] for each in times), 200)
            heights = np.array([np.interp(grid, each.times(clock), smoothed(each.accuracies)) for each in runs])
            axes.fill_between(grid, heights.min(axis=0), heights.max(axis=0), color=colour(place), alpha=0.12, lw=0)
            axes.plot(grid, heights.mean(axis=0), color=colour(place), linewidth=1.7, label=arm)
        axes.axhline(results["target"], color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        dress(axes, x=label, y="held-out accuracy (mean of three)" if axes is panels[0] else "")
    panels[0].annotate(
        f"{results['reference']} ends at {results['target']:.2f}",
        (0.98, results["target"]),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        fontsize=8,
        color=INK,
    )
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=8, frameon=False)
    return figure
