"""Findings on a run on verl before it begins, from its options, its files and the model's configuration.

Ray is not started and no weight is loaded: what only a running policy shows is not looked at.
"""

import io
import shutil
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from poise.doctor import checks
from poise.doctor.checks import Finding
from poise.extras import required_extra
from poise.features.rollout_features import end_of_thinking_ids

ACTOR_BYTES, CHECKPOINT_BYTES = 16, 12
"""A parameter: weights, gradients and AdamW's two moments in float32; a checkpoint holds no gradients."""


def findings(options: Sequence[str]) -> Iterator[Finding]:
    """The findings on a run of `poise-verl` with these options, one after another.

    Args:
        options: As on the command line of `poise-verl`.

    Raises:
        ValueError: If the run could not begin at all.
    """
    with required_extra("verl", "poise doctor OPTION=VALUE"):
        from poise.engines.verl.command import check, composed_options, untested_release_warning
        from poise.engines.verl.machine import check_machine
        from poise.engines.verl.settings import sources_of_bias
    config = composed_options(options)
    with redirect_stdout(io.StringIO()):  # verl says of each check that it has passed
        settings = check(config)
    yield Finding("options", "ok", "poise and verl can serve them")
    check_machine(config, settings)
    yield Finding("machine", "ok", "files, columns, model, sampler, loggers and reward function are there")
    said = untested_release_warning(version("verl"))
    yield Finding("versions", "warn" if said else "ok", said or "verl is inside the tested range")
    sources = sources_of_bias(config, settings)
    for source in sources:
        yield Finding("gradient", "warn", f"not exactly unbiased: {source}")
    if not sources:
        yield Finding("gradient", "ok", "unbiased in the first minibatch")
    rollout = config.actor_rollout_ref.rollout
    sampler = {"top_p": rollout.top_p, "top_k": max(0, rollout.top_k)}  # -1 is vLLM's word for all
    yield checks.sampling_finding(sampler, {})
    yield checks.temperature_finding(rollout.temperature, rollout.temperature)
    folder = Path(config.actor_rollout_ref.model.path).expanduser()
    if folder.is_dir():
        yield from _model_findings(config, settings, folder)


def _model_findings(config: Any, settings: Any, folder: Path) -> Iterator[Finding]:
    """What the files of a model tell."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    trusted = {"trust_remote_code": bool(config.actor_rollout_ref.model.get("trust_remote_code"))}
    tokenizer = AutoTokenizer.from_pretrained(folder, **trusted)
    ids = end_of_thinking_ids(tokenizer, settings.end_of_thinking)
    yield checks.thinking_finding(settings.end_of_thinking, ids, tokenizer.chat_template)
    with torch.device("meta"):
        shape = AutoConfig.from_pretrained(folder, **trusted).get_text_config()
        model = AutoModelForCausalLM.from_config(shape, **trusted)
    size = sum(each.numel() for each in model.parameters())
    trainer, rollout = config.trainer, config.actor_rollout_ref.rollout
    offload = config.actor_rollout_ref.actor.fsdp_config
    yield memory_finding(
        size * ACTOR_BYTES / (trainer.nnodes * trainer.n_gpus_per_node),
        rollout.gpu_memory_utilization,
        card=float(torch.cuda.mem_get_info()[1]) if torch.cuda.is_available() else None,
        offloaded=bool(offload.param_offload and offload.optimizer_offload),
    )
    run = Path(trainer.default_local_dir).absolute()
    place = next(path for path in (run, *run.parents) if path.is_dir())
    kept = trainer.max_actor_ckpt_to_keep or 1
    yield checks.disk_finding(float(shutil.disk_usage(place).free), float((kept + 1) * size * CHECKPOINT_BYTES))


def memory_finding(actor: float, sampler_share: float, *, card: float | None, offloaded: bool) -> Finding:
    """Whether actor and sampler fit on a GPU.

    Args:
        actor: Bytes of weights, gradients and moments on it.
        sampler_share: Of its memory that the sampler takes.
        card: Bytes of its memory; None where there is none.
        offloaded: Whether the actor leaves it while rollouts are sampled.
    """
    name = "memory"
    sentence = f"weights, gradients and moments take {actor / 2**30:.1f} GiB a GPU"
    if card is None:
        return Finding(name, "ok", f"{sentence}, and there is none here")
    sampler = sampler_share * card
    needed = max(actor, sampler) if offloaded else actor + sampler
    sentence += f", the sampler {sampler / 2**30:.1f}, of {card / 2**30:.1f}"
    if needed <= card:
        return Finding(name, "ok", sentence)
    return Finding(
        name,
        "fail",
        f"{sentence}: set actor.fsdp_config.param_offload and optimizer_offload, lower rollout.gpu_memory_utilization, "
        "or use more GPUs",
    )
