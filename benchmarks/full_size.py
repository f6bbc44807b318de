"""The cost of each part of poise at the size of a real policy, as a share of what training does in any case.

A model with random weights in exactly Qwen3-4B's shape (on a GPU, in bfloat16) or in a small one (on a CPU), random
tokens of a fixed length; no downloads. Measured on a microbatch, alternating so that drift falls on all alike, medians
over repetitions:

    log-prob pass      forward, log-probabilities of the sampled tokens, in chunks of positions
    entropies          the same with token entropies from the same logits (TRL's output head makes them in any case)
    capture            the same with hooks that pool hidden states, and features made of what they pooled
    transfer           features to the CPU
    probe update       one whole step of `poise.OnlineBaseline`, its window full, for all rollouts of a step
    policy update      forward with gradient checkpointing, backward, AdamW

The probe update happens once a step, the passes once a microbatch: shares are of a step of `--rollouts` rollouts. Peak
memory is that of the log-prob pass and of the update, each with poise's hooks, entropies and features and without.

    python benchmarks/full_size.py [--shape qwen3-4b|small] [--rows 4] [--completion 4096] [--rollouts 512]
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from results import markdown_table, save
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import Qwen3Config, Qwen3ForCausalLM

import poise
from poise.features.hidden_states import decoder_blocks, default_layer

SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-4b": {
        "num_hidden_layers": 36,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151_936,
        "rope_theta": 1_000_000.0,
    },
    "small": {
        "num_hidden_layers": 6,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "vocab_size": 16_384,
    },
}
CHUNK = 512
"""Positions of one row whose logits exist at a time."""
PROMPT = 256
"""Tokens."""
POOL_TOKENS = 10


def policy(shape: str, device: torch.device, length: int) -> Qwen3ForCausalLM:
    """Random weights in a shape, embeddings tied."""
    torch.manual_seed(0)
    config = Qwen3Config(**SHAPES[shape], tie_word_embeddings=True, max_position_embeddings=length, use_cache=False)
    with device:
        model = Qwen3ForCausalLM(config)
    return model.to(torch.bfloat16 if device.type == "cuda" else torch.float32)


class Batch:
    """A microbatch of random tokens: prompts and completions of fixed lengths, nothing padded."""

    def __init__(self, rows: int, completion: int, vocabulary: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(vocabulary, (rows, PROMPT + completion), generator=generator).to(device)
        is_completion = torch.arange(PROMPT + completion, device=device) >= PROMPT
        self.completion_mask = is_completion.expand(rows, -1).contiguous()
        self.prompt_mask = ~self.completion_mask
        self.rows, self.completion = rows, completion


def logprob_pass(model: Qwen3ForCausalLM, batch: Batch, *, entropies: bool, capture: bool) -> poise.Features | None:
    """Log-probabilities of the completions, with what poise adds where asked for."""
    layer = default_layer(model.config.num_hidden_layers)
    hooks: Any = nullcontext()
    if capture:
        masks = (batch.prompt_mask, batch.completion_mask)
        hooks = poise.capture_hidden_states(model, *masks, layers=[layer], pool_tokens=POOL_TOKENS)
    decoder, _ = decoder_blocks(model)
    with torch.no_grad(), hooks as captured:
        hidden = decoder(input_ids=batch.ids).last_hidden_state
    found = torch.zeros(batch.rows, batch.completion, device=batch.ids.device)
    for row in range(batch.rows):
        for first in range(0, batch.completion, CHUNK):
            places = slice(PROMPT + first - 1, PROMPT + min(first + CHUNK, batch.completion) - 1)
            with torch.no_grad():
                logits = model.lm_head(hidden[row, places])
                sampled = batch.ids[row, places.start + 1 : places.stop + 1]
                logits.float().log_softmax(-1).gather(1, sampled[:, None])
                if entropies:
                    found[row, first : first + CHUNK] = poise.token_entropies(logits)
    return captured.features(found) if captured is not None else None


def policy_update(model: Qwen3ForCausalLM, batch: Batch, optimizer: torch.optim.Optimizer) -> None:
    """One gradient step of the sampled tokens' log-probabilities, activations and logits computed again going back."""
    decoder, _ = decoder_blocks(model)
    hidden = decoder(input_ids=batch.ids).last_hidden_state
    total = hidden.new_zeros((), dtype=torch.float32)
    for row in range(batch.rows):
        for first in range(0, batch.completion, CHUNK):
            places = slice(PROMPT + first - 1, PROMPT + min(first + CHUNK, batch.completion) - 1)
            sampled = batch.ids[row, places.start + 1 : places.stop + 1]
            total = total + checkpoint(_chunk_loss, model, hidden[row, places], sampled, use_reentrant=False)
    total.backward()
    optimizer.step()
    optimizer.zero_grad()


def _chunk_loss(model: Qwen3ForCausalLM, hidden: Tensor, sampled: Tensor) -> Tensor:
    logprobs: Tensor = model.lm_head(hidden).float().log_softmax(-1).gather(1, sampled[:, None])
    return -logprobs.mean()


def probe_step(width: int, rollouts: int) -> Callable[[], None]:
    """A step of a baseline whose window is full, each time with as many rollouts of new prompts."""
    baseline = poise.OnlineBaseline(poise.preset("poise"))
    generator = torch.Generator().manual_seed(0)
    number = iter(range(10**6))

    def step() -> None:
        hidden = torch.randn(2, rollouts, width, generator=generator)
        entropies = torch.rand(rollouts, 3, generator=generator)
        features = poise.Features(hidden[0], hidden[1], entropies, torch.zeros(rollouts, 4, dtype=torch.bool))
        rewards = torch.randint(2, (rollouts,), generator=generator).double()
        first = next(number) * rollouts
        prompts = [(first + row) // 2 for row in range(rollouts)]
        baseline.step(features, rewards, prompts=prompts, weights=1 + torch.rand(rollouts, generator=generator))

    for _ in range(-(-getattr(baseline.preset.recipe, "window_rows", 0) // rollouts)):
        step()
    return step


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of one call, to its end on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def medians(parts: dict[str, Callable[[], object]], device: torch.device, repetitions: int) -> dict[str, float]:
    """Seconds of each part; they take turns, and the first round does not count."""
    taken: dict[str, list[float]] = {name: [] for name in parts}
    for repetition in range(repetitions + 1):
        for name, work in parts.items():
            taken[name].append(seconds(work, device))
        print(f"round {repetition} of {repetitions}", flush=True)
    return {name: statistics.median(each[1:]) for name, each in taken.items()}


def peak_mib(options: argparse.Namespace, arm: str) -> dict[str, float]:
    """Peak memory of the log-prob pass and of the update, in a process of its own."""
    shape = ["--shape", options.shape, "--rows", str(options.rows), "--completion", str(options.completion)]
    command = [sys.executable, __file__, *shape, "--threads", str(options.threads), "--arm", arm]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return found


def print_peaks(options: argparse.Namespace, device: torch.device) -> None:
    """Make one pass and one update, and print the most memory that each of them took."""

    def peak() -> float:
        if device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        # Not `getrusage`: Linux hands a parent's peak on to programs that it starts.
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return float(status["VmHWM"].split()[0]) / 1024

    model = policy(options.shape, device, PROMPT + options.completion).eval()
    batch = Batch(options.rows, options.completion, model.config.vocab_size, device)
    ours = options.arm == "poise"
    kept = logprob_pass(model, batch, entropies=ours, capture=ours)
    found = {"log-prob pass": peak()}
    kept = None if kept is None else kept.mapped(lambda each: each.cpu())
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    optimizer = training(model)
    policy_update(model, batch, optimizer)
    print(json.dumps(found | {"policy update": peak()}))


def training(model: Qwen3ForCausalLM) -> torch.optim.Optimizer:
    """Put the model in training mode, with gradient checkpointing; its optimizer."""
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return torch.optim.AdamW(model.parameters(), lr=1e-6)


def measured(options: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Seconds of every part: of a microbatch, and of the step for the probe."""
    model = policy(options.shape, device, PROMPT + options.completion).eval()
    batch = Batch(options.rows, options.completion, model.config.vocab_size, device)
    features = logprob_pass(model, batch, entropies=True, capture=True)
    assert features is not None
    parts: dict[str, Callable[[], object]] = {
        "log-prob pass": lambda: logprob_pass(model, batch, entropies=False, capture=False),
        "with entropies": lambda: logprob_pass(model, batch, entropies=True, capture=False),
        "with entropies and capture": lambda: logprob_pass(model, batch, entropies=True, capture=True),
        "transfer": lambda: features.mapped(lambda each: each.cpu()),
    }
    found = medians(parts, device, options.repetitions)
    step = probe_step(model.config.hidden_size, options.rollouts)
    found |= medians({"probe update": step}, torch.device("cpu"), options.repetitions)
    optimizer = training(model)
    return found | medians(
        {"policy update": lambda: policy_update(model, batch, optimizer)}, device, options.repetitions
    )


def main() -> None:
    """Times, shares, memory."""
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen3-4b" if on_gpu else "small")
    parser.add_argument("--rows", type=int, default=4, help="rollouts of a microbatch")
    parser.add_argument("--completion", type=int, default=4096 if on_gpu else 512, help="tokens")
    parser.add_argument("--rollouts", type=int, default=512, help="of a step")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of torch, on a CPU and for the probe")
    parser.add_argument("--arm", choices=["poise", "plain"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if on_gpu else "cpu")
    if options.arm:
        print_peaks(options, device)
        return
    found = measured(options, device)
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
    peaks = {arm: peak_mib(options, arm) for arm in ("plain", "poise")}
    microbatches = -(-options.rollouts // options.rows)
    logprobs, update = found["log-prob pass"], found["policy update"]
    with_entropies, with_all = found["with entropies"], found["with entropies and capture"]
    of_step = {
        "entropies": microbatches * (with_entropies - logprobs),
        "capture and pooling": microbatches * (with_all - with_entropies),
        "transfer": microbatches * found["transfer"],
        "probe update": found["probe update"],
    }
    of_step["all of poise"] = sum(of_step.values())
    rows = [
        [name, f"{taken:.3f}", f"{taken / (microbatches * logprobs):.2%}", f"{taken / (microbatches * update):.2%}"]
        for name, taken in of_step.items()
    ]
    rows += [[name, f"{microbatches * found[name]:.1f}", "", ""] for name in ("log-prob pass", "policy update")]
    memory = [
        [part, f"{peaks['plain'][part]:,.0f}", f"{peaks['poise'][part]:,.0f}"]
        for part in ("log-prob pass", "policy update")
    ]
    name = torch.cuda.get_device_name() if on_gpu else f"CPU, {options.threads} thread(s)"
    about = (
        f"{options.shape} on {name}: microbatches of {options.rows} rollouts of {PROMPT} + {options.completion} "
        f"tokens, a step of {options.rollouts} rollouts, medians of {options.repetitions}."
    )
    table = "\n\n".join(
        [
            about,
            markdown_table(["part", "seconds a step", "of the log-prob pass", "of the policy update"], rows),
            markdown_table(["peak memory, MiB", "without poise", "with poise"], memory),
        ]
    )
    result = {"device": name, "shape": options.shape, "seconds": found, "seconds_of_step": of_step, "peak_mib": peaks}
    save(f"full_size_{options.shape.replace('-', '_')}_{device.type}", result, table)


if __name__ == "__main__":
    main()
