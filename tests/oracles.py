"""Slow and obvious versions of what poise computes, and small worlds whose answers are known.

Loops and scikit-learn; nothing here calls the code under test but for what it is fed with.
"""

import itertools
import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Ridge
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from poise.batch import checked_batch, prompt_keys
from poise.features.rollout_features import MEAN_ENTROPIES, Features
from poise.probe.evidence import evidence_rows


def refitted_baselines(evidence, rewards, weights, groups, penalty):
    """One scikit-learn fit for each prompt, on all rows but the prompt's own; the batch is the last rows."""
    start = len(rewards) - len(groups)
    out = torch.zeros(len(groups), dtype=torch.float64)
    for group in set(groups.tolist()):
        own = [start + k for k, g in enumerate(groups.tolist()) if g == group]
        outside = [row for row in range(len(rewards)) if row not in own and weights[row] > 0]
        unit = float(weights[outside].mean()) if outside else 0.0
        if unit == 0:
            continue  # nothing to fit on: the coefficients are zero
        fit = Ridge(alpha=penalty * unit, fit_intercept=False, solver="cholesky")
        fit.fit(evidence[outside].numpy(), rewards[outside].numpy(), sample_weight=weights[outside].numpy())
        out[[row - start for row in own]] = torch.from_numpy(fit.predict(evidence[own].numpy()))
    return out


def sibling_mean(column, prompts, gradable=None):
    """The mean over each row's gradable siblings, by loops; 0 without any."""
    gradable = [True] * len(prompts) if gradable is None else gradable
    out = []
    for i, prompt in enumerate(prompts):
        others = [column[j] for j in range(len(prompts)) if j != i and prompts[j] == prompt and gradable[j]]
        out.append(sum(others) / len(others) if others else 0.0)
    return out


def logistic_by_newton(columns, targets, penalty):
    """Coefficients, the intercept last, that minimize the sum of cross-entropies + penalty / 2 |slopes|^2."""
    design = np.column_stack([columns, np.ones(len(columns))])
    ridge = np.diag([penalty] * columns.shape[1] + [0.0])
    coefficients = np.zeros(design.shape[1])
    for _ in range(50):
        rates = 1 / (1 + np.exp(-design @ coefficients))
        gradient = design.T @ (rates - targets) + ridge @ coefficients
        hessian = design.T @ (design * (rates * (1 - rates))[:, None]) + ridge
        coefficients -= np.linalg.solve(hessian, gradient)
    assert np.abs(gradient).max() < 1e-9
    return coefficients


NETWORK = {"hidden_layer_sizes": (64,), "learning_rate_init": 1e-3, "max_iter": 1000}


class ScikitLearnProbe:
    """The published method written with scikit-learn: one window and one pipeline for each route."""

    def __init__(
        self,
        *,
        penalty=None,
        members=None,
        stacking_penalty=None,
        target="siblings",
        components=None,
        rows=4096,
        domain_rows=None,
        own_domain=False,
        rloo_steps=1,
    ):
        self.members, self.stacking_penalty = members or [("ridge", penalty)], stacking_penalty
        self.components, self.rows, self.domain_rows = components, rows, domain_rows or {}
        self.own_domain, self.rloo_steps, self.steps = own_domain, rloo_steps, 0
        self.target = target
        self.windows, self.models = {}, {}

    def step(self, prompt, completion, scalars, rewards, prompts, domains):
        """Baselines by the models of earlier steps; then the windows grow and the models are fitted again."""
        z = [part.numpy() for part in (prompt, completion, scalars)]
        baselines = np.array(sibling_mean(rewards.tolist(), prompts))
        targets = baselines.copy()
        if self.target == "own":
            targets = rewards.numpy().astype(np.float64)
        if self.target == "group":
            targets = np.array([rewards[[q == p for q in prompts]].mean().item() for p in prompts])
        routes = domains if self.own_domain else ["all"] * len(prompts)
        for route in set(routes):
            inside = np.array([r == route for r in routes])
            mine = [part[inside] for part in z]
            names = np.array([name for name, r in zip(prompts, routes, strict=True) if r == route])
            if self.steps >= self.rloo_steps and route in self.models:
                values = np.clip(self._values(self.models[route], mine), 0, 1)
                baselines[inside] = sibling_mean(values.tolist(), list(names))
            new = (*mine, names, targets[inside])
            old = self.windows.get(route, [part[:0] for part in new])
            keep = self.domain_rows.get(route, self.rows)
            self.windows[route] = [np.concatenate(pair)[-keep:] for pair in zip(old, new, strict=True)]
        self.steps += 1
        if self.steps >= self.rloo_steps:
            for route in set(routes) if self.steps > self.rloo_steps else self.windows:
                self.models[route] = self._fitted(*self.windows[route])
        return torch.from_numpy(baselines)

    def _fitted(self, prompt, completion, scalars, names, targets):
        reductions = [
            PCA(min(k, *part.shape), svd_solver="randomized", random_state=42).fit(part)
            for k, part in zip(self.components or (), (prompt, completion), strict=False)
        ]
        joined = self._joined(reductions, [prompt, completion, scalars])
        scaler = StandardScaler().fit(joined)
        return reductions, scaler, self._combined(scaler.transform(joined), targets, names)

    def _combined(self, columns, targets, names):
        def fitted(rows):
            return [
                one_probe(kind, columns[rows], targets[rows], penalty, 42 + k)
                for k, (kind, penalty) in enumerate(self.members)
            ]

        probes = fitted(slice(None))
        if self.stacking_penalty is None:
            return lambda z: np.mean([probe(z) for probe in probes], axis=0)
        keys = prompt_keys(names.tolist())
        rank = {key: k for k, key in enumerate(sorted(set(keys)))}
        fold = np.array([rank[key] % 5 for key in keys])
        unseen = np.zeros((len(targets), len(probes)))
        for out in range(5):
            for column, probe in enumerate(fitted(fold != out)):
                unseen[fold == out, column] = probe(columns[fold == out])
        stacker = make_pipeline(StandardScaler(), Ridge(alpha=self.stacking_penalty)).fit(unseen, targets)
        return lambda z: stacker.predict(np.column_stack([probe(z) for probe in probes]))

    def _values(self, model, parts):
        reductions, scaler, combined = model
        return combined(scaler.transform(self._joined(reductions, parts)))

    def _joined(self, reductions, parts):
        hidden = [pca.transform(part) for pca, part in zip(reductions, parts, strict=False)] or parts[:2]
        return np.concatenate([part.astype(np.float64) for part in (*hidden, parts[2])], axis=1)


def one_probe(kind, columns, targets, penalty, seed):
    """A probe of one kind on standardised columns, clipped to [0, 1]."""
    if kind == "logistic":
        coefficients = logistic_by_newton(columns, targets.clip(1e-6, 1 - 1e-6), penalty)
        return lambda z: 1 / (1 + np.exp(-z @ coefficients[:-1] - coefficients[-1]))
    if kind == "mlp":
        size = min(8192, len(targets))
        fit = MLPRegressor(batch_size=size, alpha=penalty, random_state=seed, **NETWORK)
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
            fit.fit(columns, targets)
    else:
        fit = Ridge(alpha=penalty).fit(columns, targets)
    return lambda z: fit.predict(z).clip(0, 1)


@dataclass(frozen=True)
class Rollouts:
    """One step of a small world; `values` is the true V(x) of each rollout's prompt."""

    prompt: torch.Tensor
    completion: torch.Tensor
    entropies: torch.Tensor
    rewards: torch.Tensor
    values: torch.Tensor
    weights: torch.Tensor
    prompts: list
    domains: list

    @property
    def features(self):
        missing = torch.zeros(len(self.rewards), 4, dtype=torch.bool)
        return Features(self.prompt, self.completion, self.entropies, missing)

    def __getitem__(self, rows):
        picked = {name: [getattr(self, name)[k] for k in rows] for name in ("prompts", "domains")}
        tensors = ("prompt", "completion", "entropies", "rewards", "values", "weights")
        return Rollouts(**picked, **{name: getattr(self, name)[rows] for name in tensors})

    def given_to(self, baseline, **changes):
        """The step that an `OnlineBaseline` makes of these rollouts."""
        rollouts = replace(self, **changes)
        return baseline.step(
            rollouts.features,
            rollouts.rewards,
            prompts=rollouts.prompts,
            domains=rollouts.domains,
            weights=rollouts.weights,
        )


def drawn_rollouts(group_sizes, *, seed, width=12, knowable=True, rate=None, domain="all"):
    """Prompts with a V between 0 and 1 (or all at `rate`) that their states hold (or, not knowable, do not)."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(2, width, generator=torch.Generator().manual_seed(9))
    row = torch.tensor([p for p, size in enumerate(group_sizes) for _ in range(size)], dtype=torch.int64)
    rows, num_prompts = len(row), len(group_sizes)
    difficulty = torch.randn(num_prompts, generator=generator)
    value = (1.5 * difficulty).sigmoid().double() if rate is None else torch.full((num_prompts,), rate).double()
    shown = difficulty if knowable else torch.randn(num_prompts, generator=generator)
    rewards = (torch.rand(rows, generator=generator, dtype=torch.float64) < value[row]).double()
    noise = torch.randn(num_prompts + rows, width, generator=generator)
    return Rollouts(
        prompt=(2 * shown[:, None] * directions[0] + noise[:num_prompts])[row],
        completion=2 * shown[row][:, None] * directions[1] + rewards[:, None].float() + noise[num_prompts:],
        entropies=torch.rand(rows, 3, generator=generator) + (shown[row][:, None] < 0),
        rewards=rewards,
        values=value[row],
        weights=1 + 5 * (1 - rewards) + torch.rand(rows, generator=generator, dtype=torch.float64),
        prompts=[f"{domain} {seed} {p}" for p in row.tolist()],
        domains=[domain] * rows,
    )


def together(*parts):
    """One step made of several."""
    names = ("prompt", "completion", "entropies", "rewards", "values", "weights")
    tensors = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    lists = {name: [each for part in parts for each in getattr(part, name)] for name in ("prompts", "domains")}
    return Rollouts(**tensors, **lists)


def different_starts(probabilities):
    """A start of a systematic draw for each draw that there is, and the draw's probability.

    Draws change where a point passes the end of a row's stretch of the cumulated probabilities.
    """
    ends = sorted({0.0, 1.0, *(float(end) % 1 for end in probabilities.cumsum(0))})
    for low, high in itertools.pairwise(ends):
        if high - low > 1e-12:
            yield (low + high) / 2, high - low


def evidence_of(rollouts, *, history=None):
    """Rows of evidence of some rollouts of one domain, twice as many earlier ones behind each prompt as they earned."""
    rows = len(rollouts.rewards)
    features = Features(rollouts.prompt, rollouts.completion, rollouts.entropies, torch.zeros(rows, 4).bool())
    batch = checked_batch(
        features,
        rollouts.rewards,
        rollouts.prompts,
        None,
        rollouts.weights,
        needs_features=True,
        needs_siblings=False,
        scalars=MEAN_ENTROPIES,
    )
    past = torch.zeros(rows, dtype=torch.float64) if history is None else history
    return evidence_rows(
        batch,
        domains=torch.zeros(rows, dtype=torch.int64),
        history=(past, 2 * past),
        projection_size=256,
        projection_seed=0,
    )
