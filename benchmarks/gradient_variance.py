"""Variance of the policy gradient under each baseline, on the same frozen rollouts.

Three steps of 256 prompts fill the windows; then other prompts, two rollouts each, are measured: gradients of the
summed log-probability, of the embedded model with respect to all parameters (1,024 prompts), of SmolLM2 with respect to
a fresh LoRA adapter and to the output head (256 prompts). `oracle` is the mean reward of 64 other rollouts of the
prompt, `oracle, weighted` their score-norm-weighted mean. Below: the bias of a baseline that reads its own rollout (the
control `same-rollout`; the others must have none); the variance of a fixed number of rollouts spread over more or fewer
prompts (proposition 1 of arXiv:2605.07579, oracle baseline); noise over signal of pairs and of GRPO's groups of eight,
as many rollouts; and how well the weights follow the true squared norms of scores.

    python benchmarks/gradient_variance.py [--trained runs/NAME/checkpoints/checkpoint-N] [--cache FOLDER]
    python benchmarks/gradient_variance.py --model smollm2 [--cache FOLDER]
"""

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from frozen_rollouts import FrozenRollouts, Policy, embedded_policy, frozen_rollouts, smollm2_policy
from peft import LoraConfig, get_peft_model
from results import markdown_table, save
from scipy.stats import spearmanr
from torch import Tensor

import poise
from poise.diagnostics.gradient_variance import Estimate, head_score_products, prompt_gradients, score_products

STEP, FILLING = 256, 3
OTHERS = 64
SPREAD = (1, 2, 4, 8)
GROUP = 8
Watch = Callable[[int], None]
Products = Callable[[Policy, Tensor, Tensor, Tensor, Watch], Tensor]
"""Inner products of the scores of some rollouts: tokens, attention, completions."""


def of_all_parameters(policy: Policy, ids: Tensor, attention: Tensor, completion: Tensor, watch: Watch) -> Tensor:
    """Gradients of everything."""
    return score_products(policy.model, ids, attention, completion, watch=watch)


def of_lora(policy: Policy, ids: Tensor, attention: Tensor, completion: Tensor, watch: Watch) -> Tensor:
    """Gradients of a fresh adapter of rank 8 on every linear map; its first factors have none before an update."""
    torch.manual_seed(0)
    adapted = get_peft_model(policy.model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
    second = [name for name, _ in adapted.named_parameters() if "lora_B" in name]
    products = score_products(adapted, ids, attention, completion, parameters=second, watch=watch)
    adapted.unload()
    return products


def of_head(policy: Policy, ids: Tensor, attention: Tensor, completion: Tensor, watch: Watch) -> Tensor:
    """Gradients of the output head."""
    return head_score_products(policy.model, ids, attention, completion, watch=watch)


@dataclass(frozen=True)
class Case:
    """A policy, how many of its prompts are measured, how many rollouts are spread, and gradients of what."""

    name: str
    policy: Policy
    measured: int
    spread: int
    gradients: Mapping[str, Products]


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
    "same-rollout": poise.preset("same-rollout"),
}
BIASES = (("same-rollout", "none"), ("paper", "none"), ("poise-value", "none"), ("poise", "none"))
"""Baselines, and others whose mean gradient theirs must equal if both are unbiased."""


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


def products_of(case: Case, kind: str, frozen: FrozenRollouts, num_prompts: int, num: int) -> Tensor:
    """Inner products of the scores of the first `num` rollouts of the first prompts."""
    parts = (frozen.ids, frozen.attention, frozen.completion_mask)
    ids, attention, completion = (part[:num_prompts, :num].flatten(0, 1) for part in parts)

    def watch(done: int) -> None:
        if done % 32 == 0 or done == num_prompts * num:
            print(f"\r{case.name}, {kind}: {done} of {num_prompts * num} scores", end="", flush=True)

    products = case.gradients[kind](case.policy, ids, attention, completion, watch)
    print()
    return products


def groups(num_prompts: int, num_rollouts: int) -> Tensor:
    """The prompt of each row."""
    return torch.arange(num_prompts).repeat_interleave(num_rollouts)


def shown(estimate: Estimate, digits: int = 3) -> str:
    """Value and 95 % interval."""
    low, high = estimate.interval
    return f"{estimate.value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def measured_case(case: Case, cache: Path | None, seed: int) -> tuple[dict[str, Any], str]:
    """Numbers and text of everything about one policy."""

    def sampled(part: str, num_prompts: int, num_rollouts: int, part_seed: int) -> FrozenRollouts:
        file = None if cache is None else cache / f"{case.name.replace(' ', '-')}-{part}-{seed}.safetensors"
        return frozen_rollouts(case.policy, num_prompts, num_rollouts, seed=part_seed, featured=2, cache=file)

    filling = sampled("filling", FILLING * STEP, 2, 2 * seed)
    frozen = sampled("measured", case.measured, OTHERS + max(SPREAD), 2 * seed + 1)
    rewards = frozen.rewards[:, :2].flatten()
    advantages = {arm: preset_advantages(preset, filling, frozen) for arm, preset in PRESETS.items()}
    for arm, weighted in (("oracle", False), ("oracle, weighted", True)):
        advantages[arm] = rewards - oracle_baselines(frozen, case.measured, weighted=weighted).repeat_interleave(2)
    pair = frozen.rewards[:, :2]
    ceiling = 1 - float((pair[:, 0] - pair[:, 1]).square().mean() / 2 / pair.var())
    text = [
        f"## {case.name}",
        f"Accuracy {float(frozen.rewards.mean()):.2f}, noise ceiling {ceiling:.2f}, {case.measured} prompts x 2.",
    ]
    numbers: dict[str, Any] = {}
    for kind in case.gradients:
        products = products_of(case, kind, frozen, case.measured, 2)
        of_groups = products_of(case, kind, frozen, 2 * case.measured // GROUP, GROUP)
        numbers[kind], unit, table = variances(products, advantages, case.measured)
        bias, bias_table = biases(products, advantages, case.measured)
        noise, noise_table = noise_of_groups(frozen, products, of_groups, advantages)
        spread, spread_table = spread_variances(case, frozen, {2: products, GROUP: of_groups}, unit)
        text += [f"Gradient of {kind}:", table, bias_table, noise_table, spread_table]
        text.append(weights_against_norms(products, frozen))
        numbers[kind] |= bias | noise | spread
    return numbers, "\n\n".join(text)


def variances(products: Tensor, advantages: dict[str, Tensor], num_prompts: int) -> tuple[dict[str, Any], float, str]:
    """tr Cov of every arm and its ratios: numbers, the variance under no baseline, table."""
    gradients = {arm: prompt_gradients(products, a, groups(num_prompts, 2)) for arm, a in advantages.items()}
    unit = gradients["none"].trace_covariance().value
    rows, numbers = [], {}
    for arm, g in gradients.items():
        ratios = {f"/ {other}": g.variance_ratio(gradients[other]) for other in ("rloo", "none")}
        numbers[arm] = plain({"trace": g.trace_covariance(), "signal": g.squared_signal()} | ratios)
        rows.append([arm, f"{g.trace_covariance().value / unit:.3f}", *(shown(r) for r in ratios.values())])
    header = ["baseline", "tr Cov, none = 1", "/ rloo (95 % interval)", "/ none (95 % interval)"]
    return numbers, unit, markdown_table(header, rows)


def biases(products: Tensor, advantages: dict[str, Tensor], num_prompts: int) -> tuple[dict[str, Any], str]:
    """How far mean gradients of two arms on the same rollouts are apart: ||E (A - A') s||^2 over ||E r s||^2."""
    scale = prompt_gradients(products, advantages["none"], groups(num_prompts, 2)).squared_signal().value
    rows, numbers = [], {}
    for arm, other in BIASES:
        apart = prompt_gradients(products, advantages[arm] - advantages[other], groups(num_prompts, 2)).squared_signal()
        numbers[f"{arm} - {other}"] = plain({"bias": apart})
        rows.append([arm, other, shown(apart.times(1 / scale))])
    header = ["baseline", "against", "squared distance of mean gradients, squared signal = 1 (95 % interval)"]
    return numbers, markdown_table(header, rows)


def noise_of_groups(
    frozen: FrozenRollouts, of_pairs: Tensor, of_groups: Tensor, advantages: dict[str, Tensor]
) -> tuple[dict[str, Any], str]:
    """tr Cov / ||E g||^2 of a step of 128 rollouts: pairs, and GRPO's groups on a quarter of the prompts."""
    prompts = len(of_groups) // GROUP
    rewards = frozen.rewards[:prompts, :GROUP]
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    scaled = centred / (rewards.std(dim=1, keepdim=True) + 1e-4)  # TRL's
    lengths = frozen.completion_mask[:prompts, :GROUP].sum(-1)
    made = {
        "GRPO": prompt_gradients(of_groups, (scaled / lengths).flatten(), groups(prompts, GROUP)),
        "GRPO, loss not divided by length": prompt_gradients(of_groups, scaled.flatten(), groups(prompts, GROUP)),
        "group mean, not scaled": prompt_gradients(of_groups, centred.flatten(), groups(prompts, GROUP)),
    }
    for arm in ("rloo", "none", "paper", "poise-value", "poise"):
        made[arm] = prompt_gradients(of_pairs, advantages[arm], groups(len(of_pairs) // 2, 2))
    found = {arm: each.noise_to_signal() for arm, each in made.items()}
    rows, of_grpo = [], found["GRPO"]
    for arm, each in found.items():
        relative = math.hypot(*(one.standard_error / one.value for one in (each, of_grpo)))
        ratio = Estimate(
            each.value / of_grpo.value, 0.0 if arm == "GRPO" else abs(each.value / of_grpo.value) * relative
        )
        size = str(2 if arm in advantages else GROUP)
        rows.append([arm, size, shown(each.times(len(of_pairs) / 128), 1), shown(ratio, 2)])
    header = ["arm", "rollouts a prompt", "tr Cov / squared signal, a step of 128 rollouts (95 %)", "/ GRPO's (95 %)"]
    return {"noise to signal": plain(found)}, markdown_table(header, rows)


def spread_variances(
    case: Case, frozen: FrozenRollouts, products: Mapping[int, Tensor], unit: float
) -> tuple[dict[str, Any], str]:
    """tr Cov of a fixed number of rollouts over more or fewer prompts: numbers and table.

    `products`: inner products of scores, by how many rollouts of a prompt there are in them.
    """
    rows, numbers = [], {}
    for num in SPREAD:
        prompts = case.spread // num
        oracle = oracle_baselines(frozen, prompts, weighted=False).repeat_interleave(num)
        advantages = frozen.rewards[:prompts, :num].flatten() - oracle
        held = min(size for size in products if size >= num)
        by_prompt = products[held].unflatten(0, (-1, held)).unflatten(2, (-1, held))
        chosen = by_prompt[:prompts, :num, :prompts, :num].reshape(prompts * num, -1)
        trace = prompt_gradients(chosen, advantages, groups(prompts, num)).trace_covariance()
        numbers[f"oracle, m = {num}"] = plain({"trace": trace})
        rows.append([str(num), str(prompts), shown(trace.times(1 / unit))])
    header = [f"rollouts a prompt (of {case.spread})", "prompts", "tr Cov, in the unit above (95 % interval)"]
    return numbers, markdown_table(header, rows)


def weights_against_norms(products: Tensor, frozen: FrozenRollouts) -> str:
    """How well the weights follow the true squared norms of scores, in a sentence."""
    weights, norms, rewards = frozen.weights[:, :2].flatten(), products.diagonal(), frozen.rewards[:, :2].flatten()
    lengths = frozen.completion_mask[:, :2].sum(-1).flatten().double()
    wrong_over_right = float(norms[rewards < 0.5].mean() / norms[rewards > 0.5].mean())
    pearson = float(torch.corrcoef(torch.stack([weights, norms]))[0, 1])
    by_length = float(torch.corrcoef(torch.stack([lengths, norms]))[0, 1])
    return (
        f"Weights against true squared norms of scores: Pearson {pearson:.3f}, Spearman "
        f"{float(spearmanr(weights, norms).statistic):.3f} (completion length: Pearson {by_length:.3f}); "
        f"mean norm of wrong over right completions {wrong_over_right:.1f}."
    )


def plain(found: dict[str, Estimate]) -> dict[str, list[float]]:
    """Values and standard errors as JSON takes them."""
    return {name: [each.value, each.standard_error] for name, each in found.items()}


def main() -> None:
    """Measure the embedded model before and, where given, after training, or SmolLM2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["embedded", "smollm2"], default="embedded")
    parser.add_argument("--trained", type=Path, help="checkpoint of a run of `poise train` on the embedded model")
    parser.add_argument("--cache", type=Path, help="keep (or reuse) rollouts in this folder")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    name = "gradient_variance"
    if options.model == "smollm2":
        name += "_smollm2"
        kinds = {"a LoRA adapter": of_lora, "the output head": of_head}
        cases = [Case("SmolLM2-135M-Instruct", smollm2_policy(), 256, 256, kinds)]
    else:
        whole = {"all parameters": of_all_parameters}
        cases = [Case("embedded model before training", embedded_policy(), 1024, 512, whole)]
        if options.trained:
            cases.append(Case("embedded model after training", embedded_policy(options.trained), 1024, 512, whole))
    measured = {case.name: measured_case(case, options.cache, options.seed) for case in cases}
    save(name, {n: m[0] for n, m in measured.items()}, "\n\n".join(m[1] for m in measured.values()))


if __name__ == "__main__":
    main()
