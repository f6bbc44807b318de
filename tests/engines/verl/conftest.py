"""Every process of these tests is one of verl's on a CPU; set before anything imports verl."""

import os
import secrets
from pathlib import Path

HERE = Path(__file__).parent
ENVIRONMENT = {
    "VERL_PLATFORM": "cpu",
    "VERL_USE_EXTERNAL_MODULES": "cpu_platform,sampler_rollout",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "disabled",
    "RAY_raylet_start_wait_time_s": "300",  # Ray gives a busy machine 30 seconds
    "RAY_prestart_worker_first_driver": "0",
    "RAY_worker_niceness": "0",  # Ray's own 15 starves on a machine with other work
    "RAY_memory_monitor_refresh_ms": "0",  # which ends these processes when others fill the machine
    "RAY_AUTH_TOKEN": secrets.token_hex(32),  # else Ray writes one into the user's home
    "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), *filter(None, [os.getenv("PYTHONPATH")])]),
}
os.environ.update(ENVIRONMENT)

import pytest  # noqa: E402
import torch  # noqa: E402
from conformance import character_tokenizer, recorded_policy  # noqa: E402


@pytest.fixture(autouse=True)
def seed():
    """Seed torch before every test."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory):
    """The recorded policy, with its tokenizer, as verl loads them."""
    folder = tmp_path_factory.mktemp("policy")
    recorded_policy().save_pretrained(folder)
    tokenizer = character_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder
