"""verl on a machine without accelerators, for tests: a platform whose device is the CPU and whose collectives are gloo.

verl imports this module in each of its processes when `VERL_USE_EXTERNAL_MODULES` names it; `VERL_PLATFORM=cpu` chooses
it. Ray is told that there are GPUs, because verl counts nothing else.
"""

import os
import types
from contextlib import nullcontext

import torch
from torch.distributed.fsdp import FullyShardedDataParallel
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry
from verl.utils import distributed

begin_fsdp1 = FullyShardedDataParallel.__init__


def begin_fsdp1_on_cpu(self, module, *positional, **named):
    """torch's FSDP 1 with the CPU as its device, where verl gives the number of a GPU."""
    if named.get("sync_module_states"):  # of the first process; torch does so between GPUs alone
        if any(each.is_meta for each in module.parameters()):
            module.to_empty(device="cpu")
        for each in (*module.parameters(), *module.buffers()):
            torch.distributed.broadcast(each.data, 0)
        named |= {"device_id": torch.device("cpu"), "sync_module_states": False}
    begin_fsdp1(self, module, *positional, **named)


FullyShardedDataParallel.__init__ = begin_fsdp1_on_cpu


def nothing(*positional, **named):
    return 0


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    device_name = "cpu"
    vendor_name = "none"
    device_module = types.SimpleNamespace(
        **{
            name: nothing
            for name in (
                "current_device",
                "device_count",
                "empty_cache",
                "ipc_collect",
                "manual_seed",
                "manual_seed_all",
                "max_memory_allocated",
                "max_memory_reserved",
                "memory_allocated",
                "memory_reserved",
                "reset_peak_memory_stats",
                "set_device",
                "synchronize",
            )
        },
        is_available=lambda: True,
        mem_get_info=lambda *positional: (0, 1),
        get_device_name=lambda *positional: "cpu",
        get_rng_state=torch.get_rng_state,
        set_rng_state=torch.set_rng_state,
    )

    def is_available(self):
        return True

    def current_device(self):
        return torch.device("cpu")

    def device_count(self):
        return 1

    def get_device_capability(self, device_index=0):
        return None, None

    def communication_backend_name(self):
        return "gloo"

    def visible_devices_envvar(self):
        return "CUDA_VISIBLE_DEVICES"

    def ray_resource_name(self):
        return "GPU"

    def ray_noset_envvars(self):
        return []

    def is_ipc_supported(self):
        return False

    def nvtx_range(self, msg):
        return nullcontext()

    def cudart(self):
        return None

    set_device = synchronize = manual_seed = manual_seed_all = set_allocator_settings = empty_cache = nothing
    profiler_start = profiler_stop = nothing


def gloo_group(*positional, **named):
    """verl's process group without its second backend, which torch takes for the first one named twice."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(
            backend="gloo",
            rank=int(os.environ.get("RANK", 0)),
            world_size=int(os.environ.get("WORLD_SIZE", 1)),
            init_method=os.environ.get("DIST_INIT_METHOD"),
        )


distributed.initialize_global_process_group_ray = gloo_group
