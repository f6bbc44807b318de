"""Findings on one run before it begins.

The run is put together as it would be for training, a few completions are sampled and scored as they would be, and
nothing is trained or written. A check that cannot be made is a finding too.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from packaging.requirements import Requirement
from torch import Tensor

from poise.diagnostics.row_isolation import row_isolation
from poise.doctor import checks
from poise.doctor.checks import Finding
from poise.engines.trl import contract
from poise.engines.trl.sampler_gap import sampled_logprobs
from poise.features.rollout_features import end_of_thinking_ids
from poise.tasks.graded_task import GARBAGE, GradedTask
from poise.tasks.verifiers import FULL_MARKS
from poise.train.config import RunSettings
from poise.train.run import policy_trainer, tokenizer_and_task

SAMPLED_PROMPTS = 8
WEIGHTS_A_TENSOR = 1_000
OPTIMIZER_BYTES = 8
"""Two moments of AdamW in float32, a trained weight."""


def findings(settings: RunSettings, output: Path) -> Iterator[Finding]:
    """The findings on a run with these settings, one after another.

    Args:
        settings: Of the run.
        output: The folder that the run would write to, for its disk.

    Raises:
        ValueError: If the run could not begin at all.
    """
    config = settings.poise_config(output)
    tokenizer, graded_task = tokenizer_and_task(settings, config)
    with closing(graded_task):
        yield _versions()
        kept = not any(contract.differences())
        yield checks.contract_finding(contract.report(), kept=kept, run=contract.was_run())
        yield from _reward_findings(graded_task)
        trainer = policy_trainer(settings, config, tokenizer, graded_task)
        model = trainer.accelerator.unwrap_model(trainer.model)
        sampler = dict(trainer.generation_kwargs) if not config.use_vllm else _vllm_options(config)
        own = model.generation_config.to_dict()
        yield checks.trainable_finding(model)
        yield checks.sampling_finding(sampler, {} if config.use_vllm else own)
        yield checks.temperature_finding(sampler["temperature"], config.temperature)
        yield checks.padding_finding(tokenizer.pad_token_id)
        ids = end_of_thinking_ids(tokenizer, config.end_of_thinking)
        yield checks.thinking_finding(config.end_of_thinking, ids, getattr(tokenizer, "chat_template", None))
        caches = [options.get("use_cache") for options in (sampler, own)]
        yield checks.cache_finding(use_cache=next((each for each in caches if each is not None), True))
        yield checks.update_finding(sampled_weights(model), config.learning_rate)
        if config.use_vllm:
            yield Finding(
                "log-probs", "warn", "the gap to vLLM is measured during the run: see TRL's sampling/ metrics"
            )
        else:
            texts = graded_task.texts(graded_task.held_out(SAMPLED_PROMPTS))
            yield _attempted("log-probs", lambda: checks.gap_finding(*sampled_logprobs(trainer, texts)))
        preset = config.resolved_preset
        yield _attempted(
            "rows",
            lambda: checks.rows_finding(
                row_isolation(model, packed=False),
                row_isolation(model),
                reads_siblings=preset.needs_features and preset.reads_siblings,
            ),
        )
        yield from _machine_findings(trainer, model, output)


def _versions() -> Finding:
    installed: dict[str, str] = {}
    wanted = requires("poise-rlvr") or []
    for requirement in wanted:
        name = Requirement(requirement).name
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return checks.versions_finding(wanted, installed)


def _reward_findings(graded_task: GradedTask) -> Iterator[Finding]:
    try:
        graded_task.check_gold_answers()
        yield Finding("gold answers", "ok", "the reward of gold answers is that of right ones")
    except ValueError as error:
        yield Finding("gold answers", "fail", str(error))
    (problem,) = graded_task.held_out(1)
    rewards = graded_task.held_out_rewards(GARBAGE, [problem] * len(GARBAGE))
    yield checks.garbage_finding(dict(zip(GARBAGE, rewards, strict=True)), full_marks=FULL_MARKS)


def sampled_weights(model: Any) -> Float[Tensor, " sample"]:
    """Some of every trained tensor's weights, in the type that most are in; none where nothing is trained."""
    parts = [each.detach().flatten()[:WEIGHTS_A_TENSOR].cpu() for each in model.parameters() if each.requires_grad]
    sizes = Counter({part.dtype: 0 for part in parts})
    for part in parts:
        sizes[part.dtype] += len(part)
    return torch.cat([part for part in parts if part.dtype == max(sizes, key=sizes.__getitem__)] or [torch.zeros(0)])


def _machine_findings(trainer: Any, model: Any, output: Path) -> Iterator[Finding]:
    own = sum(each.numel() * each.element_size() for each in model.parameters())
    trained = [each for each in model.parameters() if each.requires_grad]
    moments = sum(each.numel() for each in trained) * OPTIMIZER_BYTES
    gradients = sum(each.numel() * each.element_size() for each in trained)
    free = float(torch.cuda.mem_get_info(model.device)[0]) if model.device.type == "cuda" else _free_memory()
    yield checks.memory_finding(free, float(gradients + moments))  # the weights are there already
    args = trainer.args
    saves = 0
    if args.save_strategy == "steps":
        every = args.save_steps if args.save_steps >= 1 else max(1, args.save_steps * args.max_steps)
        saves = min(int(args.max_steps // every) + 1, args.save_total_limit or args.max_steps)
    folder = next(path for path in (output, *output.absolute().parents) if path.is_dir())
    yield checks.disk_finding(float(shutil.disk_usage(folder).free), float(saves * (own + moments)))


def _free_memory() -> float:
    """Bytes of memory that a new program can have."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        kibibytes = dict(line.split(":") for line in meminfo.read_text().splitlines())["MemAvailable"]
        return float(kibibytes.split()[0]) * 1024
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _vllm_options(config: Any) -> dict[str, Any]:
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    return {name: getattr(config, name) for name in names} | dict(config.generation_kwargs or {}) | {"use_cache": True}


def _attempted(check: str, made: Callable[[], Finding]) -> Finding:
    try:
        return made()
    except Exception as error:  # whatever a model or its host says
        return Finding(
            check, "warn", f"could not be measured: {type(error).__name__}: {str(error).splitlines()[0]:.200}"
        )
