"""Which comparisons does a study make of one task?

The rule: within a comparison everything is fitted on the same training pairs, but where their number or their policy is
the subject.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

import poise
from poise.features.rollout_features import MEAN_ENTROPIES
from poise.features.scalars import SCALARS
from poise.lab.study.drawing import StudyRollouts
from poise.lab.study.estimators import Estimates, View, online_estimates
from poise.lab.study.judging import MEASURES, OF_VALUE_ALONE, absolute_error, judged, judged_oracle
from poise.lab.study.tables import (
    FEWEST_TRAINING_PROMPTS,
    REFERENCE,
    Line,
    Material,
    Table,
    measured_line,
    side_by_side,
)
from poise.probe.evidence import BLOCKS

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


def estimator_table(material: Material, critics: Mapping[str, Estimates]) -> Table:
    """Every estimator from one rollout of the prompt, critics among them."""
    made = {}
    for name, preset in online_presets(material.training.domains).items():
        material.watch(name)
        made[name] = material.estimates(preset)
    for name, critic in critics.items():
        made[name] = critic
        if critic.each_epoch is not None:
            made[name + IN_HINDSIGHT] = best_in_hindsight(critic, material.judging_rewards)
    reference = judged(made[REFERENCE].values, material.judging_rewards)
    material.watch("intervals")
    lines = [
        material.line(name, estimates, measures=MEASURES, reference=None if name == REFERENCE else reference)
        for name, estimates in made.items()
    ]
    oracle = measured_line(
        "mean of the other rollouts",
        judged_oracle(material.judging_rewards),
        material.samples,
        with_intervals=OF_VALUE_ALONE,
    )
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
        material.watch(name)
        estimates = material.estimates(poise.preset("poise-value", **changes), **options)
        lines.append(material.line(name, estimates))
    for name, (prompt, completion, read) in PAPERS_FEATURES.items():
        material.watch(f"paper: {name}")
        view = dataclasses.replace(material.view, prompt_states=prompt, completion_states=completion)
        estimates = material.estimates(poise.preset("paper", scalars=read), view)
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
            material.watch(f"{axis} {at}, {name}")
            estimates = material.estimates(poise.preset("poise-value", evidence=evidence), view)
            lines.append(material.line(f"{name}, {at}", estimates, at=at))
    return lines


def probe_table(material: Material) -> Table:
    """Each kind of probe that the authors' release offers."""
    lines = []
    for name, changes in PROBE_KINDS.items():
        material.watch(f"probe {name}")
        preset = poise.preset("released-qwen3-4b", own_domain=False, **changes)
        lines.append(material.line(name, material.estimates(preset)))
    about = "`released-qwen3-4b` with one probe for all domains, and with other kinds of probes on the same features."
    return Table("Probes", about, lines)


def size_table(material: Material, *, seed: int) -> Table:
    """Fewer training prompts."""
    num = len(material.training)
    sizes = [FEWEST_TRAINING_PROMPTS * 2**k for k in range(20) if FEWEST_TRAINING_PROMPTS * 2**k < num]
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(num, generator=generator).tolist() for _ in range(SUBSETS)]
    lines = []
    for name, preset in LEARNED.items():
        for size in [*sizes, num]:
            material.watch(f"{name}, {size} training prompts")
            subsets = [sorted(order[:size]) for order in (orders if size < num else orders[:1])]
            values = [
                online_estimates(preset, material.training[rows], material.held_out, material.view).values
                for rows in subsets
            ]
            each = side_by_side([judged(one, material.judging_rewards) for one in values])
            line = measured_line(name, each, material.samples, with_intervals=("mae", "value_error"))
            lines.append(dataclasses.replace(line, name=f"{name}, {size}", at=size))
    about = f"Two rollouts a prompt; fewer prompts than all: the mean over {SUBSETS} draws of them."
    return Table("Training prompts", about, lines, axis="training prompts")


def age_table(material: Material, older: StudyRollouts) -> Table:
    """Probes of an earlier policy, judged on this one."""
    lines = []
    for name, preset in LEARNED.items():
        for whose, training in (("this model", material.training), ("the older model", older)):
            material.watch(f"{name}, rollouts of {whose}")
            estimates = online_estimates(preset, training, material.held_out, material.view)
            lines.append(material.line(f"{name}, rollouts of {whose}", estimates))
    about = (
        "Fitted on rollouts of the same training prompts by this model or by an older one, judged on held-out rollouts "
        "of this one: what a window costs whose policy has moved on."
    )
    return Table("Window age", about, lines)
