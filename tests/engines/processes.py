"""What the tests of several processes run: `python processes.py FOLDER CASE...` forks the ranks of each case.

One interpreter imports once and forks, gloo joins the ranks; the exit code of every rank is printed as JSON.
"""

import itertools
import json
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conformance import (
    END_OF_THINKING,
    LAYERS,
    POOL_TOKENS,
    PRESET,
    TEMPERATURE,
    character_tokenizer,
    random_policy,
    recorded_policy,
    recorded_steps,
)
from datasets import Dataset
from peft import LoraConfig
from recording import addition_prompts, share_of_digits
from safetensors.torch import load_file
from transformers import TrainerCallback

import poise
import poise.engines.trl.trainer as engine
from poise.engines.trl import PoiseConfig, PoiseTrainer
from poise.features.rollout_features import Features

HOST = {
    "max_completion_length": 12,
    "learning_rate": 0.0,
    "temperature": TEMPERATURE,
    "bf16": False,
    "use_cpu": True,
    "report_to": [],
    "save_strategy": "no",
    "disable_tqdm": True,
    "pool_tokens": POOL_TOKENS,
    "end_of_thinking": END_OF_THINKING,
}


def library_advantages(rows: int) -> list[torch.Tensor]:
    """What the library alone makes of the first so many rollouts of each recorded step."""
    baseline = poise.OnlineBaseline(poise.preset(PRESET))
    advantages = []
    for step in recorded_steps():
        parts = (getattr(step.features, name)[:rows] for name in ("prompt", "completion", "entropies", "missing"))
        given = {name: getattr(step, name)[:rows] for name in ("prompts", "domains", "weights")}
        advantages.append(baseline.step(Features(*parts), step.reward_tensor[:rows], **given).advantages)
    return advantages


def recorded(folder: Path, *, rows: int, lora: bool = False, **options: Any) -> None:
    """The recorded rollouts, `rows` of them a rank, have the library's advantages, on whichever rank they are."""
    ranks, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    steps = recorded_steps()
    everyone = ranks * rows
    current = itertools.cycle(steps)
    playing = [steps[0]]

    def mine(column: list[Any]) -> list[Any]:
        return column[rows * rank : rows * (rank + 1)]

    def rollouts(prompts: list[str], trainer: Any) -> dict[str, Any]:
        playing[0] = next(current)
        assert prompts == mine(playing[0].prompts), "the prompts of a batch are not those that follow"
        ids = {name: mine(getattr(playing[0], name)) for name in ("prompt_ids", "completion_ids")}
        return ids | {"logprobs": None}

    of_batches = [
        {"prompt": prompt, "domain": domain}
        for step in steps
        for prompt, domain in list(zip(step.prompts, step.domains, strict=True))[:everyone:2]
    ]
    uneven = [{"prompt": f"{n}+1=", "domain": "odd"} for n in range(3)]  # fill no batch, and are left out
    args = PoiseConfig(str(folder / "recorded"), shuffle_dataset=False, layers=LAYERS, **HOST, **options)
    trainer = PoiseTrainer(
        recorded_policy(),
        lambda **columns: mine(playing[0].rewards),
        args,
        train_dataset=Dataset.from_list(of_batches + uneven),
        processing_class=character_tokenizer(),
        rollout_func=rollouts,
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM") if lora else None,
    )
    scored: list[dict[str, Any]] = []
    score = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda inputs: scored.append(score(inputs)) or scored[-1]
    trainer.train()
    assert trainer.accelerator.num_processes == ranks
    assert len(scored) == len(steps) + 1, "the batch after the uneven rest is missing"
    for found, expected in zip(scored, library_advantages(everyone), strict=False):
        gathered = trainer.accelerator.gather(found["advantages"]).double()
        torch.testing.assert_close(gathered, expected, atol=1e-6, rtol=0)
    assert (trainer.last_rollouts is None) == (rank != 0)


def fresh(folder: Path, **named: Any) -> PoiseTrainer:
    options = {"per_device_train_batch_size": 4, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    args = PoiseConfig(str(folder / "run"), **HOST | options)
    named |= {"train_dataset": addition_prompts(), "processing_class": character_tokenizer()}
    return PoiseTrainer(random_policy(layers=3, width=16), share_of_digits, args, **named)


def begin(folder: Path) -> None:
    """Train two generation batches and save each."""
    fresh(folder).train()


class Restored(TrainerCallback):
    """Holds what was restored against the checkpoint's own file, and ends the training."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        assert state.global_step == 2
        if self.trainer.accelerator.is_main_process:
            saved = load_file(Path(args.output_dir) / "checkpoint-2" / "poise.safetensors")
            found = {name: each for name, each in self.trainer.baseline.state_dict().items() if torch.is_tensor(each)}
            assert found.keys() == saved.keys()
            assert all(torch.equal(found[name], saved[name]) for name in saved)
            assert len(saved["method.window.reward"]) > 0


def resume(folder: Path) -> None:
    """Go on, on however many ranks, with the baseline of the checkpoint."""
    callback = Restored()
    callback.trainer = trainer = fresh(folder, callbacks=[callback])
    trainer.train(resume_from_checkpoint=str(folder / "run" / "checkpoint-2"))
    assert trainer.state.global_step == 4


def disagree(folder: Path) -> None:
    """One rank receives other advantages than the rest: every rank must end with that sentence."""
    broadcast = engine.broadcast
    off = float(os.environ["RANK"])
    engine.broadcast = lambda tensor, **named: broadcast(tensor, **named) + off
    with pytest.raises(RuntimeError, match="2 processes have received different advantages at step 0"):
        fresh(folder).train()


def die(folder: Path) -> None:
    """Rank 1 is killed in its third step, after the first checkpoint."""

    class Dies(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
            if os.environ["RANK"] == "1" and state.global_step == 3:
                os.kill(os.getpid(), 9)

    fresh(folder, callbacks=[Dies()]).train()


ALIGNED = {"gradient_accumulation_steps": 2, "steps_per_generation": 2}
CASES: dict[str, tuple[int, Callable[[Path], None]]] = {
    "1 rank": (1, lambda folder: recorded(folder, rows=12, per_device_train_batch_size=6, max_steps=6)),
    "2 ranks, pairs on both": (
        2,
        lambda folder: recorded(folder, rows=7, per_device_train_batch_size=7, steps_per_generation=1, max_steps=3),
    ),
    "2 ranks, accumulated": (
        2,
        lambda folder: recorded(folder, rows=8, per_device_train_batch_size=4, max_steps=3, **ALIGNED),
    ),
    "4 ranks, pairs on two": (
        4,
        lambda folder: recorded(folder, rows=3, per_device_train_batch_size=3, steps_per_generation=1, max_steps=3),
    ),
    "4 ranks, adapter": (
        4,
        lambda folder: recorded(folder, rows=4, lora=True, per_device_train_batch_size=2, max_steps=6),
    ),
    "2 ranks begin": (2, begin),
    "1 rank resumes": (1, resume),
    "4 ranks resume": (4, resume),
    "2 ranks disagree": (2, disagree),
}


def exit_codes(ranks: int, case: Callable[[Path], None], folder: Path) -> list[int]:
    """Of the ranks of a case, run side by side."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(ranks)}
            code = 1
            try:
                case(folder)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


if __name__ == "__main__":
    if "RANK" in os.environ:  # started by torchrun
        die(Path(sys.argv[1]))
    else:
        print(json.dumps({name: exit_codes(*CASES[name], Path(sys.argv[1])) for name in sys.argv[2:]}))
