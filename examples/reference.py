"""poise's baseline without its algebra, in numpy: evidence, a ridge refitted without each prompt, the mixture.

The slow twin of `poise.probe`, for one domain, graded rollouts, new prompts in each step, states of up to 256 numbers,
and rewards the largest of which lies between 1/8 and 8 (others are first divided by a power of 64).
A step maps names to arrays: prompt and completion (N, H), entropies (N, 3), rewards, weights, groups and half (N,).
"""

from typing import Any

import numpy as np

Rows = dict[str, Any]
SCALARS = ("constant", "reward", "entropies")
CANDIDATES: list[tuple[tuple[str, ...], float]] = [(SCALARS[:size], 3.0) for size in range(4)]
for states in (("prompt",), ("completion",), ("completion", "prompt")):  # twice: on all rows, and on the own domain's
    CANDIDATES += [((*SCALARS, *states), penalty) for penalty in (3.0, 30.0, 300.0, 3000.0)] * 2


def evidence(step: Rows) -> Rows:
    """What each rollout's baseline may see: means over its siblings, never the rollout itself."""
    siblings = (step["groups"][:, None] == step["groups"]) & ~np.eye(len(step["groups"]), dtype=bool)
    count = siblings.sum(1, keepdims=True)
    mean = siblings / np.maximum(count, 1)
    rows = {name: mean @ step[name].astype(float) for name in ("prompt", "completion", "entropies")}
    rows["prompt"] = np.where(count > 0, rows["prompt"], step["prompt"])  # read before any token was sampled
    rows = {name: each.astype(np.float32).astype(float) for name, each in rows.items()}
    trust, alone = count / (count + 1), count == 0
    rows |= {"entropies": 10 * rows["entropies"], "constant": 10 * np.hstack([~alone | alone, alone])}
    rows["reward"] = 10 * np.hstack([trust * (mean @ step["rewards"])[:, None], trust])
    return rows | {"alone": alone, "r": step["rewards"], "w": step["weights"]}


def columns(rows: Rows, settled: Rows, blocks: tuple[str, ...]) -> Any:
    """Blocks side by side; hidden states as scores on 40 principal axes of settled rows, cut off at six deviations."""
    made = [np.zeros((len(rows["r"]), 0))]
    for block in blocks:
        part = rows[block]
        if block in ("prompt", "completion"):
            seen = settled[block] if block == "prompt" else settled[block][~settled["alone"][:, 0]]
            variances, axes = np.linalg.eigh(np.cov(seen.T, bias=True))
            kept = [k for k in np.argsort(-variances)[:40] if variances[k] > 1e-9 * variances.sum()]
            part = np.clip((part - seen.mean(0)) @ (axes[:, kept] / np.sqrt(variances[kept])), -6, 6)
        made.append(part * ~rows["alone"] if block == "completion" else part)
    return np.hstack(made)


def predictions(rows: Rows, settled: Rows, groups: Any) -> Any:
    """Each candidate's prediction of a batch, the last rows: for every prompt from a fit without its rows."""
    out, start = np.zeros((len(CANDIDATES), len(groups))), len(rows["r"]) - len(groups)
    for k, (blocks, penalty) in enumerate(CANDIDATES[1:], start=1):
        E = columns(rows, settled, blocks)
        for group in np.unique(groups):
            own = np.concatenate([np.zeros(start, bool), groups == group])
            F, w, r = E[~own], rows["w"][~own], rows["r"][~own]
            gram = (F.T * w) @ F + penalty * w.mean() * np.eye(F.shape[1])
            out[k, own[start:]] = np.clip(E[own] @ np.linalg.solve(gram, F.T @ (w * r)), r.min(), r.max())
    return out


def observed(cost: Any, found: Any, rows: Rows) -> Any:
    """Candidates' costs, weights and rows so far, faded by 0.9, with those of one more batch."""
    costs = (rows["w"] * (rows["r"] - found) ** 2).sum(1)
    return 0.9 * cost + np.vstack([costs, np.full_like(costs, rows["w"].sum()), np.full_like(costs, len(rows["r"]))])


def shares(cost: Any) -> Any:
    """How much each candidate counts: exp(-n (R - R_best) / (8 R_best)), R its mean cost so far."""
    raw = np.exp(-cost[2] * (cost[0] / cost[0].min() - 1) / 8)  # one domain: all have the weights cost[1]
    return raw[:, None] / raw.sum()


def baselines(steps: list[Rows]) -> list[Any]:
    """The baselines of every step."""
    window, cost, made = None, np.zeros((3, len(CANDIDATES))), []
    for step in steps:
        new, groups = evidence(step), step["groups"]
        rows = new if window is None else {name: np.concatenate([window[name], new[name]]) for name in new}
        found = predictions(rows, rows if window is None else window, groups)
        count: Any = shares(cost) if window is not None else np.zeros_like(found)
        for mine in () if window is not None else (step["half"] == 0, step["half"] == 1):
            other = {name: each[~mine] for name, each in new.items()}  # axes and shares come from the other half
            found[:, mine] = predictions(new, other, groups)[:, mine]
            told = predictions(other, other, groups[~mine])
            count[:, mine] = shares(observed(np.zeros_like(cost), told, other))
        made.append((count * found).sum(0))
        cost, window = observed(cost, found, new), rows
    return made
