"""How did the packaged policy come to know what it knows, and to err as it errs?

Two stages of imitation: first flawless demonstrations, which teach the workings, then those of a pupil with bad habits,
which teach the mistakes. Training prompts only; the loss is on completions only. Everything
follows from the seed (up to the rounding of another machine or number of threads).

    python scripts/train_embedded_model.py --out DIR
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from poise.models.embedded import character_tokenizer, embedded_model_path, untrained_model
from poise.tasks.demonstrations import FLAWLESS, Habits, demonstration
from poise.tasks.embedded import DIFFICULTIES, FAMILIES, Problem, is_correct, problem, problems, split_of

IGNORED = -100  # the label that cross_entropy leaves out
BATCHES_SORTED_TOGETHER = 16  # so that completions of one batch are of like length


def encoded_demonstrations(
    tokenizer: PreTrainedTokenizerFast, rng: random.Random, *, num: int, habits: Habits
) -> list[tuple[list[int], list[int]]]:
    """Prompt and completion ids of fresh training demonstrations, short ones first."""
    asked: list[Problem] = []
    while len(asked) < num:
        candidate = problem(rng, rng.choice(DIFFICULTIES), domain=rng.choice(list(FAMILIES)))
        if split_of(candidate.prompt) == "train":
            asked.append(candidate)
    completions = [demonstration(each, rng, habits=habits) for each in asked]
    prompt_ids = tokenizer([each.prompt for each in asked])["input_ids"]
    completion_ids = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(completions)["input_ids"]]
    return sorted(zip(prompt_ids, completion_ids, strict=True), key=lambda pair: len(pair[0]) + len(pair[1]))


def padded(
    pairs: list[tuple[list[int], list[int]]], *, pad: int
) -> tuple[Int[Tensor, "rows length"], Int[Tensor, "rows length"]]:
    """Ids, padded on the right (which causal attention never looks at), and labels on the completions alone."""
    length = max(len(prompt) + len(completion) for prompt, completion in pairs)
    ids = [prompt + completion + [pad] * (length - len(prompt) - len(completion)) for prompt, completion in pairs]
    labels = [
        [IGNORED] * len(prompt) + completion + [IGNORED] * (length - len(prompt) - len(completion))
        for prompt, completion in pairs
    ]
    return torch.tensor(ids), torch.tensor(labels)


def batches(
    tokenizer: PreTrainedTokenizerFast, *, seed: int, rows: int, habits: Habits
) -> Iterator[tuple[Int[Tensor, "rows length"], Int[Tensor, "rows length"]]]:
    """Endless training batches of a pupil's demonstrations."""
    rng = random.Random(f"poise demonstrations {seed} {habits}")
    while True:
        pairs = encoded_demonstrations(tokenizer, rng, num=rows * BATCHES_SORTED_TOGETHER, habits=habits)
        for start in rng.sample(range(0, len(pairs), rows), BATCHES_SORTED_TOGETHER):
            yield padded(pairs[start : start + rows], pad=tokenizer.pad_token_id)


@torch.no_grad()
def sampled_texts(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str], *, rows: int = 250
) -> list[str]:
    """One completion a prompt, drawn at temperature 1 from the whole distribution."""
    texts: list[str] = []
    for start in range(0, len(prompts), rows):
        batch = tokenizer(prompts[start : start + rows], return_tensors="pt", padding=True, return_token_type_ids=False)
        ids = model.generate(**batch, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=64)
        texts += tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def accuracies(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, *, num: int, seed: int) -> dict[str, float]:
    """Share of held-out prompts answered right, one completion each, over all and by family."""
    asked = problems(num, seed=seed, split="heldout")
    right: dict[str, list[bool]] = defaultdict(list)
    for each, text in zip(asked, sampled_texts(model, tokenizer, [each.prompt for each in asked]), strict=True):
        right["all"].append(is_correct(text, each.answer))
        right[each.domain].append(right["all"][-1])
    return {name: sum(right[name]) / len(right[name]) for name in ("all", *FAMILIES)}


def train(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    habits: Habits,
    seed: int,
    steps: int,
    rows: int,
    peak_rate: float,
) -> None:
    """One stage of imitation: Muon for the matrices inside the layers, AdamW for the rest, one cosine."""
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    others = [weight for weight in model.parameters() if not any(weight is matrix for matrix in matrices)]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=peak_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=peak_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]

    def share_of_peak(step: int) -> float:
        return min(20 * (step + 1) / steps, 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0))))

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, share_of_peak) for optimizer in optimizers]
    start, mean_loss = time.monotonic(), 0.0
    model.train()
    stream = batches(tokenizer, seed=seed, rows=rows, habits=habits)
    for step, (ids, labels) in zip(range(1, steps + 1), stream, strict=False):
        logits = model(input_ids=ids).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        model.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        mean_loss += (loss.item() - mean_loss) / min(step, 50)
        if step % 50 == 0 or step == steps:
            print(f"step {step}/{steps} loss {mean_loss:.4f} seconds {time.monotonic() - start:.0f}", flush=True)
    model.eval()
    shares = accuracies(model, tokenizer, num=600, seed=seed)
    print("held-out accuracy: " + " ".join(f"{name} {share:.2f}" for name, share in shares.items()), flush=True)


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write float16 weights under a configuration that asks for float32, so that a plain load trains at once."""
    copy.deepcopy(model).half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    config = json.loads((out / "config.json").read_text())
    config["dtype"] = "float32"
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    print(f"written: {out}", flush=True)


def main() -> None:
    """Read the command line, train the two stages, write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=embedded_model_path(), help="folder to write (the packaged one)")
    parser.add_argument("--knowing", type=Path, help="folder of the first stage's policy; read if there, else written")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, nargs=2, default=(1500, 300), help="of the two stages")
    parser.add_argument("--peak-rates", type=float, nargs=2, default=(4e-3, 1e-3), help="learning rates of the two")
    parser.add_argument("--rows", type=int, default=64, help="demonstrations a step")
    asked = parser.parse_args()

    torch.manual_seed(asked.seed)
    tokenizer = character_tokenizer()
    model = untrained_model(tokenizer)
    print(
        f"{sum(weight.numel() for weight in model.parameters()):,} parameters; result goes to {asked.out}", flush=True
    )
    for stage, habits in enumerate((FLAWLESS, Habits())):
        if stage == 0 and asked.knowing and (asked.knowing / "config.json").exists():
            model = Qwen3ForCausalLM.from_pretrained(asked.knowing)
            continue
        print(f"stage {stage + 1}: {habits}", flush=True)
        train(
            model,
            tokenizer,
            habits=habits,
            seed=asked.seed,
            steps=asked.steps[stage],
            rows=asked.rows,
            peak_rate=asked.peak_rates[stage],
        )
        if stage == 0 and asked.knowing:
            save(model, tokenizer, asked.knowing)
    save(model, tokenizer, asked.out)


if __name__ == "__main__":
    main()
