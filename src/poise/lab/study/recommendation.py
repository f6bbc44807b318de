"""Which layer, pooling window and evidence should training on this model use?

The rule: what is judged is the squared error on training prompts of fits that left the prompt out; taken is the
simplest choice whose error exceeds the lowest by less than one standard error of that difference. Held-out prompts have
no say, so their tables stay honest.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import yaml
from jaxtyping import Float
from torch import Tensor

from poise.lab.study.comparisons import EVIDENCE
from poise.lab.study.tables import Table

Name = TypeVar("Name", str, int)


@dataclass(frozen=True)
class Recommendation:
    """Settings for `poise train`, and the cross-validated errors behind each."""

    layer: int
    pool_tokens: int
    evidence: str
    """A name of `EVIDENCE`."""

    @property
    def settings(self) -> dict[str, Any]:
        """As `poise train --config` takes them."""
        settings: dict[str, Any] = {"layers": [self.layer], "pool_tokens": self.pool_tokens}
        if self.evidence != "all":
            settings["preset_options"] = {"evidence": list(EVIDENCE[self.evidence])}
        return settings

    def snippet(self) -> str:
        """The settings as yaml."""
        return yaml.safe_dump(self.settings, sort_keys=False, default_flow_style=None)


def recommendation(
    layers: Table, pools: Table, features: Table, *, default_layer: int, default_pool: int
) -> Recommendation:
    """What a task's tables of layers, pooling windows and features recommend.

    Args:
        layers, pools, features: As `poise.lab.study.comparisons` makes them.
        default_layer, default_pool: Count as simpler than all others.
    """

    def swept(table: Table, default: int) -> dict[int, Float[Tensor, " training_prompts"]]:
        """Errors with all evidence, the default first."""
        errors = {
            line.at: line.fold_errors
            for line in table.lines
            if line.name.startswith("all, ") and line.at is not None and line.fold_errors is not None
        }
        return {default: errors[default]} | errors

    known = {line.name: line.fold_errors for line in features.lines if line.fold_errors is not None}
    return Recommendation(
        simplest_within_one_error(swept(layers, default_layer)),
        simplest_within_one_error(swept(pools, default_pool)),
        simplest_within_one_error({name: known[name] for name in EVIDENCE}),
    )


def simplest_within_one_error(errors: Mapping[Name, Float[Tensor, " prompts"]]) -> Name:
    """The first name whose mean error exceeds the lowest by less than one standard error of the difference.

    Args:
        errors: For each choice, the simplest first, the errors on the same prompts.
    """
    lowest = min(errors.values(), key=lambda each: float(each.mean()))
    for name, each in errors.items():
        excess = each - lowest
        if float(excess.mean()) <= float(excess.std()) / math.sqrt(len(excess)):
            return name
    raise ValueError("a choice needs 1 candidate or more, got none")
