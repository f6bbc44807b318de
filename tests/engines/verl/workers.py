"""A real training worker of verl on gloo, made to read rollouts: in this process, or in several."""

import os
import socket

import torch
from tensordict import TensorDict
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.workers.config import (
    FSDPEngineConfig,
    FSDPOptimizerConfig,
    HFModelConfig,
    TrainingWorkerConfig,
)

from poise.engines.verl.reading import READING
from poise.engines.verl.worker import PoiseTrainingWorker


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def training_worker(
    folder, *, rank=0, world=1, port=None, worker=PoiseTrainingWorker, model_options=None, **engine_options
):
    """A worker with the policy in `folder`, and what its process needs to believe that Ray made it."""
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_RANK="0",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port or free_port()),
    )
    model = HFModelConfig(
        path=str(folder),
        enable_gradient_checkpointing=False,
        **{"use_remove_padding": False, "override_config": {"attn_implementation": "sdpa"}} | (model_options or {}),
    )
    engine = {
        "strategy": "fsdp2",
        "mixed_precision": {"param_dtype": "fp32"},
        "use_torch_compile": False,
        "forward_only": False,
    } | engine_options
    config = TrainingWorkerConfig(
        model_type="language_model",
        model_config=model,
        engine_config=FSDPEngineConfig(**engine),
        optimizer_config=FSDPOptimizerConfig(lr=1e-3, total_training_steps=10),
        checkpoint_config=CheckpointConfig(),
    )
    made = worker(config)
    made.reset()
    return made


def jagged(rows, dtype=torch.int64):
    return torch.nested.as_nested_tensor([torch.tensor(row, dtype=dtype) for row in rows], layout=torch.jagged)


def rollout_batch(prompt_ids, completion_ids, request, *, response_mask=None, temperature=1.0, **options):
    """The rows that verl's driver hands to a worker."""
    whole = [p + c for p, c in zip(prompt_ids, completion_ids, strict=True)]
    mask = response_mask or [[1] * len(row) for row in completion_ids]
    fields = {
        "input_ids": jagged(whole),
        "position_ids": jagged([list(range(len(row))) for row in whole]),
        "prompts": jagged(prompt_ids),
        "responses": jagged(completion_ids),
        "response_mask": jagged(mask),
        "loss_mask": jagged(mask),
    }
    batch = TensorDict(fields, batch_size=len(whole))
    plain = {"calculate_entropy": True, "compute_loss": False, "temperature": temperature, "use_dynamic_bsz": False}
    plain |= {"micro_batch_size_per_gpu": len(whole)} | options
    if request is not None:
        plain[READING] = request
    tu.assign_non_tensor(batch, **plain)
    return batch


def read(worker, batch):
    """What the worker gives back for each row, unnested."""
    output = worker.infer_batch(batch)
    return {name: torch.stack(list(value.unbind())) for name, value in output.items() if name.startswith("poise_")}
