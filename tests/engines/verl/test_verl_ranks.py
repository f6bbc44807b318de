"""Several processes: each reads its own rollouts, or, with sequence parallelism, its part of every rollout."""

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from conformance import TEMPERATURE, recorded_steps
from safetensors.torch import load_file, save_file
from test_verl_reading import REQUEST, assert_as_recorded
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from workers import free_port, read, rollout_batch, training_worker


def attention_over_processes(module, query, key, value, attention_mask, scaling=None, position_ids=None, **named):
    """Attention of packed rows of which every process holds a part, as verl's flash attention gives it on a GPU."""

    def whole(part, dim):
        parts = [torch.empty_like(part) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, part.contiguous())
        return torch.cat(parts, dim=dim)

    key, value = (whole(part, 2).repeat_interleave(module.num_key_value_groups, dim=1) for part in (key, value))
    row = (whole(position_ids[0], 0) == 0).cumsum(0)
    at = torch.arange(query.shape[2]) + torch.distributed.get_rank() * query.shape[2]
    sees = (row[at][:, None] == row) & (torch.arange(len(row)) <= at[:, None])
    output = scaled_dot_product_attention(query, key, value, attn_mask=sees, scale=scaling)
    return output.transpose(1, 2).contiguous(), None


def rows_of(rank, parallel):
    step = recorded_steps()[0]
    own = slice(8 * rank, 8 * rank + 8) if parallel == "data" else slice(None)
    return step.prompt_ids[own], step.completion_ids[own]


CASES = {  # whose rows a process reads, attention, processes to a row, what shards the weights
    "data": ("data", "sdpa", 1, "fsdp2"),
    "data, FSDP 1": ("data", "sdpa", 1, "fsdp"),
    "sequence": ("sequence", "over_processes", 2, "fsdp2"),
    "sequence, FSDP 1": ("sequence", "over_processes", 2, "fsdp"),
}


def read_in_process(rank, policy_folder, port, folder):
    AttentionInterface.register("over_processes", attention_over_processes)
    for name, (parallel, attention, size, strategy) in CASES.items():
        worker = training_worker(
            policy_folder,
            rank=rank,
            world=2,
            port=port,
            model_options={"use_remove_padding": True, "override_config": {"attn_implementation": attention}},
            ulysses_sequence_parallel_size=size,
            strategy=strategy,
        )
        assert isinstance(worker.engine.module, FullyShardedDataParallel) == (strategy == "fsdp")
        batch = rollout_batch(
            *rows_of(rank, parallel), REQUEST, temperature=TEMPERATURE, use_dynamic_bsz=True, max_token_len_per_gpu=50
        )
        if worker.engine.is_mp_src_rank_with_outputs():
            save_file(read(worker, batch), f"{folder}/{name} {rank}.safetensors")
        else:
            assert worker.infer_batch(batch) is None  # the other process hands over what both have read


@pytest.fixture(scope="module")
def read_by_two(policy_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("read_by_two")
    torch.multiprocessing.spawn(read_in_process, args=(str(policy_folder), free_port(), str(folder)), nprocs=2)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_processes_read_what_one_reads(name, read_by_two):
    parts = [load_file(file) for file in sorted(read_by_two.glob(f"{name} [0-9].safetensors"))]
    assert len(parts) == (2 if CASES[name][0] == "data" else 1)
    assert_as_recorded({name: torch.cat([part[name] for part in parts]) for name in parts[0]}, recorded_steps()[0])
