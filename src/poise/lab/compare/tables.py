"""How are the results of a comparison written down?

The rule: every number has its interval, every comparison its reference, and what chance alone does stands beside it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from poise.lab.compare.arms import arm_named

_UNITS = {"seconds": "seconds", "cpu_seconds": "CPU seconds", "rollouts": "rollouts", "tokens": "tokens"}


def markdown(results: Mapping[str, Any]) -> str:
    """All tables, with a sentence on what each says."""
    parts = [_head(results), _accuracy(results), _time(results), _sampling(results)]
    if any(arm["gradient"] for arm in results["arms"].values()):
        parts.append(_gradients(results))
    return "\n\n".join([*parts, _learning_rates(results)]) + "\n"


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
        "Intervals are 95 %, over seeds; arms are compared seed by seed.\n\n"
        f"{arms}"
    )


def _accuracy(results: Mapping[str, Any]) -> str:
    reference, twice = results["reference"], results["twice"]
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
    equal = results["equal"]
    header = [
        "arm",
        "final accuracy",
        f"minus `{reference}`",
        "verdict",
        f"at {equal['seconds']:.0f} s",
        f"at {equal['tokens']:,.0f} tokens",
        "updates",
        "seconds",
        "tokens",
    ]
    return (
        "## Held-out accuracy\n\n"
        "Means of three evaluations: at the end of a run, and at the time and the tokens that every run has reached. "
        f"Two runs of `{twice['arm']}` that differ in the seed of sampling alone are {twice['accuracy_floor']:.3f} "
        "apart by chance (mean over seeds, 95 %); nothing within that is called a difference.\n\n"
        f"{table(header, rows)}"
    )


def _time(results: Mapping[str, Any]) -> str:
    reference = results["reference"]
    rows = []
    twice = {f"`{results['twice']['arm']}` / itself": results["twice"]["time_to_target"]}
    arms = {f"`{name}`": arm["time_to_target"] for name, arm in results["arms"].items()}
    for label, clocks in (arms | twice).items():
        row = [label, f"{clocks['seconds']['reached']} of {clocks['seconds']['runs']}"]
        for clock in ("seconds", "tokens", "rollouts"):
            found = clocks[clock]
            median = "-" if found["median"] is None else f"{found['median']:,.0f}"
            said = found.get("verdict", "chance")
            ratio = "1" if said == "reference" else f"{shown(found['ratio'], digits=2)}, {said}"
            row += [f"{found['restricted_mean']:,.0f} ({median})", ratio]
        rows.append(row)
    header = ["arm", "reached"]
    for clock in ("seconds", "tokens", "rollouts"):
        header += [f"{_UNITS[clock]}: mean (median)", f"/ `{reference}`"]
    return (
        f"## Time to `{reference}`'s final accuracy, {results['target']:.3f}\n\n"
        "The first time at which the mean of three evaluations is that high. Runs that end before it are censored: "
        "means and medians are Kaplan and Meier's, means restricted to the time up to which both arms are known; a "
        "dash says that half of the runs never got there. The last line compares an arm with itself.\n\n"
        f"{table(header, rows)}"
    )


def _sampling(results: Mapping[str, Any]) -> str:
    rows = [
        [
            f"`{name}`",
            f"{arm['zero_advantage_prompts']:.1%}",
            f"{arm['zero_advantage_tokens']:.1%}",
            f"{arm['surplus_tokens']:.1%}",
            "-" if arm["entropy"] is None else f"{arm['entropy']:.3f}",
            f"{arm['memory_mib_of_training']:,.0f}",
            f"{arm['critic_mib']:,.0f}",
        ]
        for name, arm in results["arms"].items()
    ]
    header = [
        "arm",
        "prompts with zero advantage",
        "tokens sampled for them",
        "tokens dropped with a signal",
        "entropy at the end, nats",
        "memory of training, MiB",
        "of it a critic's weights and moments",
    ]
    return f"## Where sampling goes\n\n{table(header, rows)}"


def _gradients(results: Mapping[str, Any]) -> str:
    rows = []
    measured = [arm["gradient"] for arm in results["arms"].values() if arm["gradient"]]
    others = list(dict.fromkeys(other for found in measured for other in found["ratios"]))
    for name, arm in results["arms"].items():
        found = arm["gradient"]
        if found is None:
            continue
        rows.append(
            [
                f"`{name}`",
                f"{found['noise_to_signal']:.2f}",
                *(shown(found["ratios"][other], digits=2) if other in found["ratios"] else "1" for other in others),
                shown(found["bias"], digits=3) if "bias" in found else "-",
                f"{found['bias_to_signal']:.3f}" if "bias" in found else "-",
            ]
        )
    header = ["arm", "tr Cov / ‖E g‖²", *(f"/ `{other}`" for other in others), "‖E (A - r) s‖²", "over ‖E g‖²"]
    return (
        "## Variance and bias of a step's gradient while training\n\n"
        f"On the same {results['conditions']['gradient_prompts']} prompts each time, with the arm's own rollouts and "
        "advantages; sums over the measurements of a run. The variance is that of a step, over the squared signal, so "
        "that the unit of advantages does not matter. The squared bias is zero for unbiased baselines (it can come out "
        "negative); arms that divide advantages have none that could be compared.\n\n"
        f"{table(header, rows)}"
    )


def _learning_rates(results: Mapping[str, Any]) -> str:
    arms = results["arms"]
    rates = sorted({rate for arm in arms.values() for rate in arm["learning_rates_tried"]}, key=float)
    if not rates:
        return f"All arms have the learning rate {next(iter(arms.values()))['learning_rate']:g}."
    rows = [
        [f"`{name}`", f"{arm['learning_rate']:g}"]
        + [_accuracy_or_dash(arm["learning_rates_tried"].get(rate)) for rate in rates]
        for name, arm in arms.items()
    ]
    return (
        "## Learning rates\n\nFinal accuracy on seeds that are used for nothing else; the best one was taken.\n\n"
        f"{table(['arm', 'taken', *rates], rows)}"
    )


def _accuracy_or_dash(number: float | None) -> str:
    return "-" if number is None else f"{number:.3f}"


def shown(interval: Mapping[str, float], *, digits: int = 3, sign: bool = False) -> str:
    """A value and its interval."""
    form = f"{{:{'+' if sign else ''}.{digits}f}}"
    value, low, high = (form.format(interval[end]) for end in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
