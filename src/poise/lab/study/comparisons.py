"""The comparisons that a study makes of one task, each a table.

Within a comparison everything is fitted on the same training pairs, but where their number or their policy is the
subject. All lines of a table are judged by the same rollouts of the same held-out prompts; intervals and ratios
resample those prompts alike.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

import poise
from poise.diagnostics.pairs import PairScoreboard
from poise.evaluate.statistics import bootstrap_interval
from poise.features.rollout_features import MEAN_ENTROPIES
from poise.features.scalars import SCALARS
from poise.lab.progress import Watch, silent
from poise.lab.study.estimators import Estimates, View, online_estimates
from poise.lab.study.judging import MEASURES, OF_VALUE_ALONE, Judged, absolute_error, judged, judged_oracle
from poise.lab.study.rollouts import StudyRollouts
from poise.lab.study.settings import FEWEST_TRAINING_PROMPTS
from poise.probe.evidence import BLOCKS
from poise.storage.rollouts import finite

LOWEST_CEILING = 0.1
"""Below this noise ceiling a task says nothing about any estimator."""
REFERENCE = "poise-value"
"""The estimator that all others are compared with."""
IN_HINDSIGHT = ", in hindsight"
"""Ends the name of what held-out rewards have chosen."""

SUBSETS = 3
"""Draws of a smaller number of training prompts, whose measures are averaged."""

_REWARDS = ("constant", "domain", "sibling_reward", "history")
EVIDENCE: dict[str, tuple[str, ...]] = {
    "rewards": _REWARDS,
    "rewards, entropies": (*_REWARDS, "sibling_entropies"),
    "rewards, entropies, reasoning states": (*_REWARDS, "sibling_entropies", "sibling_states"),
    "all": BLOCKS,
}
"""Evidence that a baseline may be given, the simplest first."""

SWEPT_EVIDENCE = {"all": BLOCKS, "states": ("constant", "domain", "sibling_states", "prompt_states")}
"""Evidence in tables of layers and pooling windows."""

ENTROPIES = tuple(name for name in SCALARS if name.endswith("_entropy") and "gap" not in name)
"""Mean, max, min and last token entropy of completion, reasoning and answer."""

PAPERS_FEATURES: dict[str, tuple[bool, bool, tuple[str, ...]]] = {
    "prompt states": (True, False, ()),
    "reasoning states": (False, True, ()),
    "mean entropies": (False, False, MEAN_ENTROPIES),
    "completion's length": (False, False, ("completion_log_length",)),
    "full": (True, True, MEAN_ENTROPIES),
}
"""The paper's table 3: prompt states, reasoning states, scalars."""

_KINDS = ("ridge", "logistic", "mlp")
PROBE_KINDS: dict[str, dict[str, Any]] = {kind: {"probe": kind} for kind in _KINDS} | {
    f"all three, {combination}": {"members": tuple((kind, 100.0) for kind in _KINDS), "combination": combination}
    for combination in ("mean", "stacked")
}
"""Changes of the released recipe, whose penalty is 100."""

LEARNED = {
    "poise-value": poise.preset("poise-value"),
    "paper": poise.preset("paper"),
    "released-qwen3-4b, one probe": poise.preset("released-qwen3-4b", own_domain=False),
}
"""What is compared over numbers of training prompts and over the age of the window."""


@dataclass(frozen=True)
class Noise:
    """How far rewards of held-out prompts can be told at all."""

    mean_reward: float
    value_variance: float
    ceiling: float
    """The largest share of the rewards' variance that any baseline could take off."""

    @property
    def says_nothing(self) -> bool:
        """Whether the task is too alike over prompts to compare estimators on it."""
        return not self.ceiling >= LOWEST_CEILING


def noise_of(rewards: Float[Tensor, "prompts rollouts"]) -> Noise:
    """What several rollouts of each prompt tell (`poise.diagnostics.pairs`)."""
    groups = torch.arange(len(rewards)).repeat_interleave(rewards.shape[1])
    flat = rewards.flatten()
    scoreboard = PairScoreboard().observe(flat, flat.mean().expand_as(flat), groups, torch.ones_like(flat).bool())
    count, _, square, products, *_ = scoreboard.sums.tolist()
    return Noise(float(flat.mean()), (products - square) / count, scoreboard.metrics()["noise_ceiling"])


@dataclass(frozen=True)
class Line:
    """One estimator in a table."""

    name: str
    measures: dict[str, float]
    """By the names of `poise.lab.study.judging.MEASURES`; NaN where one does not apply."""
    intervals: dict[str, tuple[float, float]]
    ratio: tuple[float, float, float] | None = None
    """The reference's mean absolute error over this one's, and its interval; below 1 the reference is nearer."""
    cost: Estimates | None = None
    """What it took to fit, and errors on training prompts; None where nothing was fitted, or several fits were."""
    at: int | None = None
    """Where it stands on the axis of a sweep."""

    def as_json(self) -> dict[str, Any]:
        """In plain values; None where something does not apply."""
        shown: dict[str, Any] = {"name": self.name}
        for name, value in self.measures.items():
            ends = {"interval_95": list(self.intervals[name])} if name in self.intervals else {}
            shown[name] = {"value": value} | ends
        if self.ratio is not None:
            shown["reference_mae_over_this"] = {"value": self.ratio[0], "interval_95": list(self.ratio[1:])}
        costs = ("seconds", "cpu_seconds", "extra_bytes")
        return finite(shown | {name: self.cost and getattr(self.cost, name) for name in costs})


@dataclass(frozen=True)
class Table:
    """Lines that are compared."""

    title: str
    about: str
    """What is compared, in a sentence or two."""
    lines: list[Line]
    shown: tuple[str, ...] = ("mae", "value_error", "pearson", "brier_skill")
    """Measures that are printed."""
    axis: str = ""
    """What a sweep goes over."""


@dataclass(frozen=True)
class Material:
    """What the tables of one task are made from."""

    training: StudyRollouts
    held_out: StudyRollouts
    judges: int
    """Rollouts of a held-out prompt that judge; later ones are its history."""
    view: View
    resamples: int
    """Of held-out prompts, for intervals."""
    seed: int
    watch: Watch = silent
    """Told what is fitted next."""

    @property
    def judging_rewards(self) -> Float[Tensor, "prompts judges"]:
        """Those that judge; the ones that are evidence are among them, but never judge what was made from them."""
        return self.held_out.rewards[:, : self.judges]

    def judged(self, estimates: Estimates) -> Judged:
        """Estimates beside what judges them."""
        return judged(estimates.values, self.judging_rewards)

    def estimates(self, name: str, preset: poise.Preset, view: View | None = None, **options: Any) -> Estimates:
        """Of all held-out prompts by a baseline of the library."""
        self.watch(f"fitting {name}", 0, 0)
        training = options.pop("training", self.training)
        return online_estimates(preset, training, self.held_out, view or self.view, **options)

    def line(
        self,
        name: str,
        each: Judged | Estimates,
        *,
        measures: Iterable[str] = ("mae", "value_error"),
        reference: Judged | None = None,
        at: int | None = None,
    ) -> Line:
        """An estimator's line; `measures` are those with intervals."""
        cost = each if isinstance(each, Estimates) else None
        found = self.judged(each) if isinstance(each, Estimates) else each
        intervals = {
            measure: self._interval(lambda rows, of=MEASURES[measure]: of(found[rows])) for measure in measures
        }
        ratio = None
        if reference is not None:
            ends = self._interval(lambda rows: _ratio(reference[rows], found[rows]))
            ratio = (_ratio(reference, found), *ends)
        return Line(name, {m: measure(found) for m, measure in MEASURES.items()}, intervals, ratio, cost, at)

    def _interval(self, statistic: Any) -> tuple[float, float]:
        return bootstrap_interval(statistic, len(self.held_out), resamples=self.resamples, seed=self.seed)


def _ratio(reference: Judged, each: Judged) -> float:
    error = absolute_error(each)
    return absolute_error(reference) / error if error else math.nan


def estimator_table(material: Material, critics: Mapping[str, Estimates]) -> Table:
    """Every estimator from one rollout of the prompt, critics among them."""
    made: dict[str, Estimates] = {}
    for name, preset in online_presets(material.training.domains).items():
        made[name] = material.estimates(name, preset)
    for name, critic in critics.items():
        made[name] = critic
        if critic.each_epoch is not None:
            made[name + IN_HINDSIGHT] = best_in_hindsight(critic, material.judging_rewards)
    reference = material.judged(made[REFERENCE])
    lines = [
        material.line(name, estimates, measures=MEASURES, reference=None if name == REFERENCE else reference)
        for name, estimates in made.items()
    ]
    others = judged_oracle(material.judging_rewards)
    oracle = material.line("mean of the other rollouts", others, measures=OF_VALUE_ALONE)
    known = {name: oracle.measures[name] for name in OF_VALUE_ALONE}
    lines.append(dataclasses.replace(oracle, measures=dict.fromkeys(MEASURES, math.nan) | known))
    about = (
        f"Fitted on two rollouts of each of {len(material.training)} prompts, given one rollout of a held-out prompt, "
        f"judged by {material.judges - 1} others. The last line is what those others know, each of them judged by the "
        "one left out."
    )
    about += "".join(f" The {name}: {each.chosen}." for name, each in made.items() if each.chosen)
    shown = ("mae", "value_error", "pearson", "spearman", "auroc", "brier_skill", "calibration_error")
    return Table("Estimators", about, lines, shown)


def best_in_hindsight(critic: Estimates, rewards: Float[Tensor, "prompts draws"]) -> Estimates:
    """The epoch whose mean absolute error is lowest on the very rollouts that judge: a bound on any choice of them.

    Raises:
        ValueError: If epochs were not taken down.
    """
    if critic.each_epoch is None:
        raise ValueError("a choice in hindsight needs what each epoch said, got none")
    candidates = [critic.values, *critic.each_epoch]  # training prompts may have chosen the untrained one
    best = min(candidates, key=lambda values: absolute_error(judged(values, rewards)))
    num = len(critic.each_epoch)
    chosen = f"the lowest MAE of all {num} epochs of all rates, chosen on the rollouts that judge"
    return dataclasses.replace(critic, values=best, chosen=chosen)


def online_presets(domains: Sequence[str]) -> dict[str, poise.Preset]:
    """The baselines of the library that are compared."""
    presets = {
        "leave-out mean": poise.preset("poise-value", evidence=("constant", "domain")),
        "rloo": poise.preset("rloo"),
        "shrunk-rloo": poise.preset("shrunk-rloo"),
        "prompt-only": poise.preset("prompt-only"),
        "poise-light": poise.preset("poise-light"),
        "paper": poise.preset("paper"),
        "released-qwen3-4b": poise.preset("released-qwen3-4b"),
        "released-olmo3-7b": poise.preset("released-olmo3-7b"),
    }
    if len(set(domains)) > 1:
        for name in ("released-qwen3-4b", "released-olmo3-7b"):
            presets[f"{name}, one probe"] = poise.preset(name, own_domain=False)
    return presets | {name: poise.preset(name) for name in ("poise-value", "poise")}


def feature_table(material: Material) -> Table:
    """What each feature, and each other kind of evidence, adds."""
    scalars = ("constant", "domain", "sibling_entropies")

    def without(left_out: str) -> tuple[str, ...]:
        return tuple(block for block in BLOCKS if block != left_out)

    arms: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "prompt states": ({"evidence": ("constant", "domain", "prompt_states")}, {}),
        "reasoning states": ({"evidence": ("constant", "domain", "sibling_states")}, {}),
        "mean entropies": ({"evidence": scalars}, {}),
        "completion's length": ({"evidence": scalars, "scalars": ("completion_log_length",)}, {}),
        "states and mean entropies": ({"evidence": without("sibling_reward")}, {}),
        "states and all entropies": (
            {"evidence": without("sibling_reward"), "scalars": ENTROPIES},
            {},
        ),
        "states and all scalars": ({"evidence": without("sibling_reward"), "scalars": tuple(SCALARS)}, {}),
    }
    arms |= {name: ({"evidence": blocks}, {}) for name, blocks in EVIDENCE.items()}
    if len(set(material.training.domains)) > 1:
        arms["all but the domain"] = ({"evidence": without("domain")}, {"own_domains": False})
    arms["all, and a history of two rollouts"] = ({}, {"history": True})
    lines = []
    for name, (changes, options) in arms.items():
        estimates = material.estimates(name, poise.preset("poise-value", **changes), **options)
        lines.append(material.line(name, estimates))
    for name, (prompt, completion, read) in PAPERS_FEATURES.items():
        view = dataclasses.replace(material.view, prompt_states=prompt, completion_states=completion)
        estimates = material.estimates(f"paper: {name}", poise.preset("paper", scalars=read), view)
        lines.append(material.line(f"paper: {name}", estimates))
    about = (
        "`poise-value` with some of its evidence; from `rewards` on, the sibling's reward is in. History: what the "
        "prompt earned with two rollouts of an earlier step, which judge nothing. Below, the paper's five rows with "
        "its own probe."
    )
    return Table("Features and evidence", about, lines)


def layer_table(material: Material) -> Table:
    """Each layer alone."""
    views = {layer: dataclasses.replace(material.view, layer=layer) for layer in material.held_out.layers}
    about = (
        f"`poise-value`, hidden states of one layer, the last {material.view.pool_tokens} tokens; with all evidence, "
        "and with nothing but states."
    )
    return Table("Layers", about, _swept(material, views, axis="layer"), axis="layer")


def pool_table(material: Material) -> Table:
    """Each pooling window."""
    pools = sorted(material.held_out.prompt_states)
    views = {pool: dataclasses.replace(material.view, pool_tokens=pool) for pool in pools}
    about = (
        f"`poise-value`, hidden states of layer {material.view.layer}; with all evidence, and with nothing but states."
    )
    return Table("Pooling", about, _swept(material, views, axis="tokens"), axis="last tokens that are averaged")


def _swept(material: Material, views: Mapping[int, View], *, axis: str) -> list[Line]:
    """`poise-value` with all evidence, and with states alone, over some views."""
    lines = []
    for name, evidence in SWEPT_EVIDENCE.items():
        for at, view in views.items():
            estimates = material.estimates(f"{axis} {at}", poise.preset("poise-value", evidence=evidence), view)
            lines.append(material.line(f"{name}, {at}", estimates, at=at))
    return lines


def probe_table(material: Material) -> Table:
    """Each kind of probe that the authors' release offers."""
    lines = []
    for name, changes in PROBE_KINDS.items():
        preset = poise.preset("released-qwen3-4b", own_domain=False, **changes)
        lines.append(material.line(name, material.estimates(f"probe {name}", preset)))
    about = "`released-qwen3-4b` with one probe for all domains, and with other kinds of probes on the same features."
    return Table("Probes", about, lines)


def size_table(material: Material) -> Table:
    """Fewer training prompts."""
    num = len(material.training)
    sizes = [FEWEST_TRAINING_PROMPTS * 2**k for k in range(20) if FEWEST_TRAINING_PROMPTS * 2**k < num]
    generator = torch.Generator().manual_seed(material.seed)
    orders = [torch.randperm(num, generator=generator).tolist() for _ in range(SUBSETS)]
    lines = []
    for name, preset in LEARNED.items():
        for size in [*sizes, num]:
            subsets = [sorted(order[:size]) for order in (orders if size < num else orders[:1])]
            each = [
                material.judged(material.estimates(f"{name}, {size} prompts", preset, training=material.training[rows]))
                for rows in subsets
            ]
            lines.append(material.line(f"{name}, {size}", side_by_side(each), at=size))
    about = f"Two rollouts a prompt; fewer prompts than all: the mean over {SUBSETS} draws of them."
    return Table("Training prompts", about, lines, axis="training prompts")


def age_table(material: Material, older: StudyRollouts) -> Table:
    """Probes of an earlier policy, judged on this one."""
    lines = []
    for name, preset in LEARNED.items():
        for whose, training in (("this model", material.training), ("the older model", older)):
            estimates = material.estimates(f"{name}, rollouts of {whose}", preset, training=training)
            lines.append(material.line(f"{name}, rollouts of {whose}", estimates))
    about = (
        "Fitted on rollouts of the same training prompts by this model or by an older one, judged on held-out rollouts "
        "of this one: what a window costs whose policy has moved on."
    )
    return Table("Window age", about, lines)


def side_by_side(parts: Sequence[Judged]) -> Judged:
    """One set of estimates with the choices of evidence of several."""
    names = [each.name for each in dataclasses.fields(Judged)]
    return Judged(*(np.concatenate([getattr(part, name) for part in parts], axis=1) for name in names))
