"""Time and memory that poise adds to a step of TRL.

`PoiseTrainer` (preset `poise`, window full) against stock `GRPOTrainer`: one configuration, G = 2, two minibatches a
generation batch, so that the pass for old log-probs is made in both; a random Qwen3 of 32 M parameters; completions of
fixed length, so that both arms generate the same number of tokens. Time: blocks of steps in alternating pairs, the
order within a pair changing from pair to pair; the ratio of each pair, their median and its interval from the order
statistics (no assumption on the distribution; six pairs or more). CPU seconds beside wall-clock ones: other programs
disturb them less. Memory: the peak resident set of a process that trains one arm alone, alternating too.

    python benchmarks/overhead.py [--pairs 14] [--block-steps 2] [--memory-runs 6]
"""

import argparse
import gc
import json
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from results import markdown_table, save
from scipy.stats import binom
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    PrinterCallback,
    Qwen3Config,
    Qwen3ForCausalLM,
    TrainerCallback,
    set_seed,
)
from trl import GRPOConfig, GRPOTrainer

import poise
from poise.engines.trl import PoiseConfig, PoiseTrainer

LENGTH = 64
ROLLOUTS = 32
TIME_BAR, MEMORY_BAR = 1.05, 1.02


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a character of ASCII, in a vocabulary of 1,024."""
    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {chr(c): c for c in range(32, 127)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def policy(width: int, depth: int) -> Qwen3ForCausalLM:
    """A Qwen3 with random weights, the same ones in both arms."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=1024,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=depth,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=width // 8,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    return Qwen3ForCausalLM(config)


def odd_share(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """A reward that costs nothing and differs between rollouts."""
    return [sum(token % 2 for token in ids) / len(ids) for ids in completion_ids]


class Stopwatch(TrainerCallback):  # type: ignore[misc]
    """Seconds of every step, generation, rewards and advantages included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []

    def on_step_begin(self, *positional: Any, **named: Any) -> None:
        self.began = time.perf_counter(), time.process_time()

    def on_step_end(self, *positional: Any, **named: Any) -> None:
        self.seconds.append(time.perf_counter() - self.began[0])
        self.cpu_seconds.append(time.process_time() - self.began[1])


def trainer(arm: str, *, steps: int, width: int, depth: int, folder: str) -> tuple[GRPOTrainer, Stopwatch]:
    """One arm, ready to train; poise's window is full."""
    settings: dict[str, Any] = {
        "output_dir": folder,
        "num_generations": 2,
        "per_device_train_batch_size": ROLLOUTS // 2,
        "steps_per_generation": 2,
        "max_completion_length": LENGTH,
        "generation_kwargs": {"min_new_tokens": LENGTH},
        "loss_type": "dr_grpo",
        "scale_rewards": "none",
        "disable_dropout": True,
        "max_steps": steps,
        "learning_rate": 1e-5,
        "gradient_checkpointing": False,
        "bf16": torch.cuda.is_available(),
        "use_cpu": not torch.cuda.is_available(),
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    watch = Stopwatch()
    data = Dataset.from_list([{"prompt": f"{i * 7919 % 10007:>8}+{i:>4}="} for i in range(256)])
    arguments: dict[str, Any] = {"train_dataset": data, "processing_class": tokenizer(), "callbacks": [watch]}
    model = policy(width, depth)
    if arm == "poise":
        made = PoiseTrainer(model, odd_share, PoiseConfig(**settings), **arguments)
        fill_window(made.baseline, width=width)
    else:
        made = GRPOTrainer(model, odd_share, GRPOConfig(**settings), **arguments)
    made.remove_callback(PrinterCallback)
    return made, watch


def fill_window(baseline: poise.OnlineBaseline, *, width: int) -> None:
    """Let the baseline learn from as many rollouts as its window holds, in batches of the benchmark's size."""
    generator = torch.Generator().manual_seed(0)
    rows = getattr(baseline.preset.recipe, "window_rows", 0)
    for start in range(0, rows, 512):
        hidden = torch.randn(2, 512, width, generator=generator)
        features = poise.Features(
            hidden[0], hidden[1], torch.rand(512, 3, generator=generator), torch.zeros(512, 4, dtype=torch.bool)
        )
        prompts = [f"filling {(start + row) // 2}" for row in range(512)]
        rewards = torch.rand(512, generator=generator, dtype=torch.float64)
        baseline.step(features, rewards, prompts=prompts, weights=50 + 10 * torch.rand(512, generator=generator))


def block_seconds(arm: tuple[GRPOTrainer, Stopwatch], *, seed: int) -> tuple[float, float]:
    """Mean seconds a step over one block, wall and CPU; both arms of a pair draw the same prompts and seed."""
    trained, watch = arm
    watch.seconds.clear()
    watch.cpu_seconds.clear()
    gc.collect()
    set_seed(seed)
    trained.train()
    return float(np.mean(watch.seconds)), float(np.mean(watch.cpu_seconds))


def median_interval(ratios: list[float]) -> tuple[float, float, float]:
    """Median and its interval of at least 95 %, from order statistics."""
    ordered = np.sort(ratios)
    n = len(ordered)
    cut = int(binom.ppf(0.025, n, 0.5))
    if cut == 0:
        return float(np.median(ordered)), float("nan"), float("nan")
    return float(np.median(ordered)), float(ordered[cut - 1]), float(ordered[n - cut])


def peak_mib(arm: str, options: argparse.Namespace) -> float:
    """Peak memory of a process of its own that trains one arm."""
    command = [sys.executable, __file__, "--arm", arm, "--width", str(options.width), "--depth", str(options.depth)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(finished.stdout.splitlines()[-1])["peak_mib"])


def train_alone(options: argparse.Namespace, folder: str) -> None:
    """Train one arm for two generation batches and print the peak memory of this process."""
    trained, _ = trainer(options.arm, steps=4, width=options.width, depth=options.depth, folder=folder)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trained.train()
    peak = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else resident_peak_mib()
    print(json.dumps({"peak_mib": peak}))


def resident_peak_mib() -> float:
    """Peak resident set since this program began.

    Not `getrusage`: Linux hands a parent's peak on to programs that it starts, and the parent has trained both arms.
    """
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return float(status["VmHWM"].split()[0]) / 1024


def measured_times(options: argparse.Namespace, folder: str) -> tuple[np.ndarray, int]:
    """Seconds a step, shape (pairs, [poise, TRL], [wall, CPU]); and the number of parameters."""
    shape = {"steps": options.block_steps, "width": options.width, "depth": options.depth, "folder": folder}
    arms = {name: trainer(name, **shape) for name in ("poise", "trl")}
    parameters = sum(p.numel() for p in arms["poise"][0].model.parameters())
    for name in arms:  # compile, allocate, warm the caches
        block_seconds(arms[name], seed=1000)
    pairs = []
    for k in range(options.pairs):
        order = ("poise", "trl") if k % 2 == 0 else ("trl", "poise")
        seconds = {name: block_seconds(arms[name], seed=k) for name in order}
        pairs.append((seconds["poise"], seconds["trl"]))
        (ours, _), (theirs, _) = pairs[-1]
        print(f"pair {k + 1} of {options.pairs}: poise {ours:.3f} s, TRL {theirs:.3f} s", flush=True)
    return np.asarray(pairs), parameters


def main() -> None:
    """Time, memory, verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=14)
    parser.add_argument("--block-steps", type=int, default=2)
    parser.add_argument("--memory-runs", type=int, default=6)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1, help="of torch, in both arms")
    parser.add_argument("--arm", choices=["poise", "trl"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        if options.arm:
            train_alone(options, folder)
            return
        pairs, parameters = measured_times(options, folder)
    peaks: dict[str, list[float]] = {"poise": [], "trl": []}
    for k in range(options.memory_runs):
        for arm in ("poise", "trl") if k % 2 == 0 else ("trl", "poise"):
            peaks[arm].append(peak_mib(arm, options))
        print(
            f"memory {k + 1} of {options.memory_runs}: poise {peaks['poise'][-1]:,.0f} MiB, "
            f"TRL {peaks['trl'][-1]:,.0f} MiB",
            flush=True,
        )
    ratios = pairs[:, 0] / pairs[:, 1]
    (median, low, high), cpu = (median_interval(ratios[:, clock].tolist()) for clock in (0, 1))
    (ours, ours_cpu), (theirs, theirs_cpu) = np.median(pairs, axis=0).tolist()
    peak = {arm: float(np.median(values)) if values else float("nan") for arm, values in peaks.items()}
    memory = peak["poise"] / peak["trl"]
    verdict = {"time": median <= TIME_BAR and low < TIME_BAR, "memory": memory <= MEMORY_BAR}
    said = {name: "holds" if holds else "does not hold" for name, holds in verdict.items()}
    rows = [
        ["seconds a step, median", f"{ours:.3f}", f"{theirs:.3f}", f"{median:.3f} ({low:.3f} to {high:.3f})"],
        [
            "CPU seconds a step, median",
            f"{ours_cpu:.3f}",
            f"{theirs_cpu:.3f}",
            "{:.3f} ({:.3f} to {:.3f})".format(*cpu),
        ],
        ["peak memory, MiB", f"{peak['poise']:,.0f}", f"{peak['trl']:,.0f}", f"{memory:.3f}"],
    ]
    bars = [f"<= {TIME_BAR}: {said['time']}", "", f"<= {MEMORY_BAR}: {said['memory']}"]
    rows = [[*row, bar] for row, bar in zip(rows, bars, strict=True)]
    about = (
        f"{parameters / 1e6:.1f} M parameters, {ROLLOUTS} rollouts of {LENGTH} tokens a generation batch, G = 2, "
        f"2 minibatches, {len(pairs)} pairs of blocks of {options.block_steps} steps, {options.threads} thread(s)."
    )
    table = about + "\n\n" + markdown_table(["", "PoiseTrainer", "GRPOTrainer", "ratio", "bar"], rows)
    result = {
        "parameters": parameters,
        "pairs_seconds": pairs.tolist(),
        "ratio_median": median,
        "ratio_interval": [low, high],
        "cpu_ratio_median_and_interval": cpu,
        "peak_mib": peaks,
        "memory_ratio": memory,
        "holds": verdict,
    }
    save("overhead", result, table)


if __name__ == "__main__":
    main()
