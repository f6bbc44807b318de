"""The maps from features to a value that the authors' release offers.

Ridge, a logistic regression on soft targets, a small network, and ensembles of them. All see the same standardised
columns and are fitted to targets between 0 and 1; all values lie between 0 and 1. A probe is a function of its rows,
targets and seed alone: fitted again on a saved window, it is the same probe.

An ensemble is combined by the mean of its members, or stacked: by a ridge regression on their values. That regression
is fitted on values of prompts that the members had not seen. (The release fits it on the members' own fit, which
rewards the member that overfits most.)
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor

from poise.probe.leave_one_out import ridge

SEED = 42
"""Of the network, as in the release; an ensemble's later members count on from it."""

COMBINATIONS = ("mean", "stacked")

_FOLDS = 5
# Targets of a logistic regression keep this distance from 0 and 1, so that its intercept is finite.
_LEAST_TARGET = 1e-6

Columns = Float[Tensor, "rows columns"]
ValueProbe = Callable[[Columns], Float[Tensor, " rows"]]


def ridge_probe(columns: Columns, targets: Float[Tensor, " rows"], *, penalty: float, seed: int) -> ValueProbe:
    """Ridge regression with a free intercept b and slopes w: sum (w'z + b - t)^2 + penalty |w|^2."""
    center, intercept = columns.mean(dim=0), targets.mean()
    slopes = ridge(columns - center, targets - intercept, torch.ones_like(targets), penalty)
    return lambda rows: ((rows - center) @ slopes + intercept).clamp(0, 1)


def logistic_probe(columns: Columns, targets: Float[Tensor, " rows"], *, penalty: float, seed: int) -> ValueProbe:
    """Logistic regression on soft targets with a free intercept: mean cross-entropy + penalty / (2 rows) |w|^2.

    Scikit-learn's takes labels: a row of target t is one of label 1 and weight t, and one of label 0 and weight 1 - t.
    """
    from sklearn.linear_model import LogisticRegression

    soft = targets.clamp(_LEAST_TARGET, 1 - _LEAST_TARGET)
    labels = torch.cat([torch.ones_like(soft), torch.zeros_like(soft)])
    weights = torch.cat([soft, 1 - soft])
    fit = LogisticRegression(C=1 / penalty, tol=1e-9, max_iter=500)
    with _convergence_unasked():
        fit.fit(torch.cat([columns, columns]).numpy(), labels.numpy(), sample_weight=weights.numpy())
    return lambda rows: torch.from_numpy(fit.predict_proba(rows.numpy())[:, 1])


def network_probe(columns: Columns, targets: Float[Tensor, " rows"], *, penalty: float, seed: int) -> ValueProbe:
    """Scikit-learn's `MLPRegressor` with the release's settings: 64 hidden units, Adam at 1e-3, `alpha` = penalty."""
    from sklearn.neural_network import MLPRegressor

    network = MLPRegressor(
        hidden_layer_sizes=(64,),
        learning_rate_init=1e-3,
        alpha=penalty,
        batch_size=min(8192, len(targets)),
        max_iter=1000,
        random_state=seed,
    )
    with _convergence_unasked():
        network.fit(columns.numpy(), targets.numpy())
    return lambda rows: torch.from_numpy(network.predict(rows.numpy())).clamp(0, 1)


@contextmanager
def _convergence_unasked() -> Iterator[None]:
    """Without scikit-learn's warning that the iterations ran out: their number is a setting of the release."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


PROBES = {"ridge": ridge_probe, "logistic": logistic_probe, "mlp": network_probe}
"""Every kind of probe by name."""


def fitted_ensemble(
    columns: Columns,
    targets: Float[Tensor, " rows"],
    prompts: Int[Tensor, " rows"],
    members: Sequence[tuple[str, float]],
    *,
    combination: str,
    stacking_penalty: float,
) -> ValueProbe:
    """Fit the members, each a kind and a penalty, and combine them.

    Args:
        columns: Standardised.
        targets: Between 0 and 1.
        prompts: One number a prompt: rows of a prompt are never on both sides of a fold.
        members: One or more. A single one is the ensemble.
        combination: "mean" or "stacked"; rows of a single prompt cannot be stacked, and are combined by the mean.
        stacking_penalty: Of the ridge regression on the members' standardised values.
    """

    def fitted(seen: Tensor | slice) -> Callable[[Columns], Float[Tensor, "rows members"]]:
        probes = [
            PROBES[kind](columns[seen], targets[seen], penalty=penalty, seed=SEED + k)
            for k, (kind, penalty) in enumerate(members)
        ]
        return lambda rows: torch.stack([probe(rows) for probe in probes], dim=1)

    values = fitted(slice(None))
    distinct, rank = prompts.unique(return_inverse=True)
    folds = min(_FOLDS, len(distinct))
    if combination == "mean" or len(members) == 1 or folds < 2:
        return lambda rows: values(rows).mean(dim=1)
    unseen = torch.empty(len(targets), len(members), dtype=torch.float64)
    for fold in range(folds):
        inside = rank % folds == fold
        unseen[inside] = fitted(~inside)(columns[inside])
    scaled = standard_scaler(unseen)
    stacker = ridge_probe(scaled(unseen), targets, penalty=stacking_penalty, seed=SEED)
    return lambda rows: stacker(scaled(values(rows)))


def standard_scaler(columns: Columns) -> Callable[[Columns], Columns]:
    """The map that gives these columns mean 0 and variance 1, and leaves the scale of constant ones."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(columns.numpy())
    return lambda rows: torch.from_numpy(scaler.transform(rows.numpy()))
