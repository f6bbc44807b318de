"""The layer, pooling window and evidence that training on the studied model should use."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from poise.evaluate.statistics import simplest_within_one_error
from poise.lab.study.comparisons import EVIDENCE, Table


@dataclass(frozen=True)
class Recommendation:
    """What a task's tables recommend for training on this model.

    Judged by the squared error on training prompts of fits that left the prompt out: held-out prompts have no say.
    """

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
    """The simplest layer, pooling window and evidence whose errors are within one standard error of the lowest.

    Args:
        layers, pools, features: Tables of one task.
        default_layer, default_pool: Count as simpler than all others.
    """

    def errors(table: Table) -> dict[str, NDArray[np.float64]]:
        known = {line.name: line.cost.fold_errors for line in table.lines if line.cost is not None}
        return {name: each.numpy() for name, each in known.items() if each is not None}

    def best(table: Table, default: int) -> int:
        swept = {int(name.removeprefix("all, ")): e for name, e in errors(table).items() if name.startswith("all, ")}
        return simplest_within_one_error({default: swept[default]} | swept)

    known = errors(features)
    evidence = simplest_within_one_error({name: known[name] for name in EVIDENCE})
    return Recommendation(best(layers, default_layer), best(pools, default_pool), evidence)
