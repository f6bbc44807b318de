"""How much does the policy gradient vary under each baseline, on the same frozen rollouts?

Three steps of 256 prompts fill the windows; then 1,024 prompts, two rollouts each, are measured: gradients of the
summed log-probability with respect to all parameters of the embedded model. `oracle` is the mean reward of 64 other
rollouts of the prompt, `oracle, weighted` their score-norm-weighted mean. Below: the variance of a fixed number of
rollouts spread over more or fewer prompts (proposition 1 of arXiv:2605.07579, oracle baseline), and how well the
weights follow the true squared norms of scores.

    python benchmarks/gradient_variance.py [--trained runs/NAME/checkpoints/checkpoint-N] [--cache FOLDER]
"""

import argparse
from pathlib import Path

import torch
from frozen_rollouts import FrozenRollouts, embedded_rollouts
from results import markdown_table, save
from scipy.stats import spearmanr
from torch import Tensor
from transformers import AutoModelForCausalLM

import poise
from poise.gradient_variance import Estimate, prompt_gradients, score_products
from poise.models.embedded import embedded_model_path

STEP, FILLING, MEASURED = 256, 3, 1024
OTHERS = 64
ROLLOUTS_FIXED = 512
PRESETS = {
    "rloo": poise.preset("rloo"),
    "none": poise.preset("none"),
    "leave-out mean": poise.preset("poise-value", evidence=("constant", "domain")),
    "shrunk-rloo": poise.preset("shrunk-rloo"),
    "prompt-only": poise.preset("prompt-only"),
    "paper": poise.preset("paper"),
    "released-qwen3-4b": poise.preset("released-qwen3-4b", rloo_steps=1),
    "released-qwen3-4b, one probe": poise.preset("released-qwen3-4b", rloo_steps=1, own_domain=False),
    "poise-value": poise.preset("poise-value"),
    "poise": poise.preset("poise"),
}


def preset_advantages(preset: poise.Preset, filling: FrozenRollouts, measured: FrozenRollouts) -> Tensor:
    """Advantages of the first two rollouts of the measured prompts, after other steps have filled the window."""
    baseline = poise.OnlineBaseline(preset)
    pair = torch.tensor([0, 1])
    for number, frozen in enumerate((filling, measured)):
        advantages = []
        for start in range(0, len(frozen.domains), STEP):
            chosen = slice(start, start + STEP)
            step = baseline.step(
                frozen.features(chosen, pair),
                frozen.rewards[chosen][:, pair].flatten(),
                prompts=[(number, p) for p in range(start, start + STEP) for _ in pair],
                domains=[domain for domain in frozen.domains[chosen] for _ in pair],
                weights=frozen.weights[chosen][:, pair].flatten(),
            )
            advantages.append(step.advantages)
    return torch.cat(advantages)


def oracle_baselines(frozen: FrozenRollouts, num_prompts: int, *, weighted: bool) -> Tensor:
    """One baseline for each of the first prompts, from its last `OTHERS` rollouts."""
    rewards, weights = frozen.rewards[:num_prompts, -OTHERS:], frozen.weights[:num_prompts, -OTHERS:]
    weights = weights if weighted else torch.ones_like(weights)
    return (weights * rewards).sum(1) / weights.sum(1)


def scores_of(model: torch.nn.Module, frozen: FrozenRollouts, num_prompts: int, num: int, what: str) -> Tensor:
    """Inner products of the scores of the first `num` rollouts of the first prompts."""
    ids, attention, completion = (
        part[:num_prompts, :num].flatten(0, 1) for part in (frozen.ids, frozen.attention, frozen.completion_mask)
    )

    def watch(done: int) -> None:
        if done % 64 == 0 or done == len(ids):
            print(f"\r{what}: {done} of {len(ids)} scores", end="" if done < len(ids) else "\n", flush=True)

    return score_products(model, ids, attention, completion, watch=watch)


def groups(num_prompts: int, num_rollouts: int) -> Tensor:
    """The prompt of each row."""
    return torch.arange(num_prompts).repeat_interleave(num_rollouts)


def shown(estimate: Estimate, digits: int = 3) -> str:
    """Value and 95 % interval."""
    low, high = estimate.interval
    return f"{estimate.value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def policy_tables(
    name: str, path: Path, cache: Path | None, seed: int
) -> tuple[dict[str, dict[str, list[float]]], str]:
    """Everything about one policy."""

    def sampled(part: str, num_prompts: int, num_rollouts: int, part_seed: int) -> FrozenRollouts:
        file = None if cache is None else cache / f"{name.replace(' ', '-')}-{part}-{seed}.safetensors"
        return embedded_rollouts(num_prompts, num_rollouts, seed=part_seed, cache=file, model_path=path)

    filling = sampled("filling", FILLING * STEP, 2, 2 * seed)
    frozen = sampled("measured", MEASURED, OTHERS + 8, 2 * seed + 1)
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    products = scores_of(model, frozen, MEASURED, 2, name)
    where = groups(MEASURED, 2)
    rewards = frozen.rewards[:, :2].flatten()
    advantages = {arm: preset_advantages(preset, filling, frozen) for arm, preset in PRESETS.items()}
    for arm, weighted in (("oracle", False), ("oracle, weighted", True)):
        advantages[arm] = rewards - oracle_baselines(frozen, MEASURED, weighted=weighted).repeat_interleave(2)
    gradients = {arm: prompt_gradients(products, a, where) for arm, a in advantages.items()}
    unit = gradients["none"].trace_covariance().value
    rows, numbers = [], {}
    for arm, g in gradients.items():
        ratios = {other: g.variance_ratio(gradients[other]) for other in ("rloo", "none")}
        numbers[arm] = {"trace": g.trace_covariance(), "signal": g.squared_signal()} | ratios
        rows.append([arm, f"{g.trace_covariance().value / unit:.3f}", *(shown(r) for r in ratios.values())])
    header = ["baseline", "tr Cov, none = 1", "/ rloo (95 % interval)", "/ none (95 % interval)"]
    main_table = markdown_table(header, rows)

    spread = []
    for num in (1, 2, 4, 8):
        prompts = ROLLOUTS_FIXED // num
        oracle = oracle_baselines(frozen, prompts, weighted=False).repeat_interleave(num)
        a = frozen.rewards[:prompts, :num].flatten() - oracle
        part = scores_of(model, frozen, prompts, num, f"{name}, m = {num}")
        trace = prompt_gradients(part, a, groups(prompts, num)).trace_covariance()
        numbers[f"oracle, m = {num}"] = {"trace": trace}
        scaled = Estimate(trace.value / unit, trace.standard_error / unit)
        spread.append([str(num), str(prompts), shown(scaled)])
    spread_table = markdown_table(
        [f"rollouts a prompt (of {ROLLOUTS_FIXED})", "prompts", "tr Cov (95 % interval)"], spread
    )

    weights, norms = frozen.weights[:, :2].flatten(), products.diagonal()
    lengths = frozen.completion_mask[:, :2].sum(-1).flatten().double()
    pearson = float(torch.corrcoef(torch.stack([weights, norms]))[0, 1])
    by_length = float(torch.corrcoef(torch.stack([lengths, norms]))[0, 1])
    ratio = float(norms[rewards < 0.5].mean() / norms[rewards > 0.5].mean())
    text = (
        f"**{name}**, accuracy {float(frozen.rewards.mean()):.2f}, {MEASURED} prompts x 2\n\n"
        f"{main_table}\n\n{spread_table}\n\n"
        f"Weights against true squared norms of scores: Pearson {pearson:.3f}, Spearman "
        f"{float(spearmanr(weights, norms).statistic):.3f} (completion length: Pearson {by_length:.3f}); "
        f"mean norm of wrong over right completions {ratio:.1f}."
    )
    plain = {arm: {k: [e.value, e.standard_error] for k, e in found.items()} for arm, found in numbers.items()}
    return plain, text


def main() -> None:
    """Measure the embedded model before and, where given, after training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trained", type=Path, help="checkpoint of a run of `poise train`")
    parser.add_argument("--cache", type=Path, help="keep (or reuse) rollouts in this folder")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    policies = {"embedded model before training": embedded_model_path()}
    if options.trained:
        policies["embedded model after training"] = options.trained
    measured = {n: policy_tables(n, p, options.cache, options.seed) for n, p in policies.items()}
    save("gradient_variance", {n: m[0] for n, m in measured.items()}, "\n\n".join(m[1] for m in measured.values()))


if __name__ == "__main__":
    main()
