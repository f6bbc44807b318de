"""A whole run of the command: Ray, verl's data bus, agent loop, reward loop, FSDP2 actor, weight sync and checkpoints.

Two data parallel ranks, packed rows, dynamic batches. The sampler is a stand-in; everything else is verl's and poise's
own. The same run is made twice, once as it is and once killed and resumed: both must arrive at the same baseline.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from datasets import Dataset
from safetensors.torch import load_file
from torch.testing import assert_close

from conftest import ENVIRONMENT, HERE

STEPS, SAVED_AT = 5, 3
MOST_SECONDS = 300
"""For one run of the command."""
SECONDS_TO_START = 90
"""For Ray, which waits for ever where its own daemon has given up: that one allows its agent 15 seconds."""


@pytest.fixture(scope="module")
def overrides(policy_folder, tmp_path_factory):
    """Options of the command, but for where checkpoints go."""
    rows = [
        {
            "data_source": "odd" if number % 2 else "even",
            "prompt": [{"role": "user", "content": f"{number}+{number % 7}="}],
            "reward_model": {"style": "rule", "ground_truth": str(number + number % 7)},
            "extra_info": {"index": number},
        }
        for number in range(16)
    ]
    data = tmp_path_factory.mktemp("data") / "train.parquet"
    Dataset.from_list(rows).to_parquet(data)
    return [
        f"data.train_files={data}",
        f"data.val_files={data}",
        "data.max_prompt_length=16",
        "data.max_response_length=12",
        "data.train_batch_size=8",  # an epoch is two steps: prompts come again
        "data.dataloader_num_workers=0",
        "data.seed=0",
        f"actor_rollout_ref.model.path={policy_folder}",
        "actor_rollout_ref.model.use_remove_padding=true",
        "+actor_rollout_ref.model.override_config.attn_implementation=sdpa",
        "actor_rollout_ref.model.enable_gradient_checkpointing=false",
        "actor_rollout_ref.actor.strategy=fsdp2",
        "actor_rollout_ref.actor.ppo_mini_batch_size=8",
        "actor_rollout_ref.actor.use_dynamic_bsz=true",
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=60",
        "actor_rollout_ref.actor.use_torch_compile=false",
        "actor_rollout_ref.actor.fsdp_config.use_torch_compile=false",
        "+actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=fp32",
        "actor_rollout_ref.actor.optim.lr=1e-4",
        "actor_rollout_ref.rollout.name=sampler",
        "actor_rollout_ref.rollout.load_format=auto",
        "actor_rollout_ref.rollout.full_determinism=true",  # all requests go to one server, which counts them
        "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
        "actor_rollout_ref.rollout.agent.num_workers=1",
        "reward.num_workers=1",
        f"reward.custom_reward_function.path={HERE / 'share_of_digits.py'}",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
        "trainer.device=cpu",
        "trainer.n_gpus_per_node=2",
        "trainer.logger=[console]",
        f"trainer.total_training_steps={STEPS}",
        "trainer.total_epochs=10",
        f"trainer.save_freq={SAVED_AT}",
        "trainer.val_before_train=false",
        "+ray_kwargs.ray_init.num_gpus=2",
        "ray_kwargs.ray_init.num_cpus=12",
        "+ray_kwargs.ray_init.include_dashboard=false",
        "poise.layers=[0,1]",
        "poise.pool_tokens=3",
        "poise.end_of_thinking='=>'",
    ]


class Run:
    """One process of the command, in a session of its own so that Ray's processes end with it."""

    def __init__(self, overrides, folder, log):
        self.folder, self.log = folder / "checkpoints", log
        command = [
            str(Path(sys.executable).parent / "poise-verl"),
            *overrides,
            f"trainer.default_local_dir={self.folder}",
            f"hydra.run.dir={folder}",
        ]
        for last in (False, True):  # on a busy machine Ray may not come up, or lose its processes before a step
            with log.open("w") as output:
                self.process = subprocess.Popen(
                    command,
                    env=os.environ | ENVIRONMENT,
                    cwd=folder,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            is_up = self.wait_for("Started a local Ray instance", seconds=SECONDS_TO_START)
            if (is_up and self.wait_for("step:", seconds=MOST_SECONDS)) or last:
                break
            self.kill()
            warnings.warn(f"started again, since this did not reach a step:\n{log.read_text()[-4000:]}", stacklevel=2)

    def finished(self):
        try:
            code = self.process.wait(timeout=MOST_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            code = None
        assert code == 0, self.log.read_text()[-4000:]
        return self

    def killed_after(self, text):
        is_logged = self.wait_for(text, seconds=MOST_SECONDS)
        ended = self.process.poll()
        self.kill()
        assert ended is None, self.log.read_text()[-4000:]
        assert is_logged, self.log.read_text()[-4000:]

    def wait_for(self, text, *, seconds):
        """Whether the text is logged; waits until it is, the process has ended or the time is up."""
        latest = time.monotonic() + seconds
        while text not in self.log.read_text() and self.process.poll() is None and time.monotonic() < latest:
            time.sleep(0.5)
        return text in self.log.read_text()

    def kill(self):
        with contextlib.suppress(ProcessLookupError):  # all of them have ended
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def metric(self, name):
        """Its value in every step, as the console showed it."""
        pattern = rf"step:\d+ .*? {re.escape(name)}:(?:np\.\w+\()?([-+.\de]+)"
        return [float(value) for value in re.findall(pattern, self.log.read_text())]


def saved(run, step):
    folder = run.folder / f"global_step_{step}"
    return json.loads((folder / "poise.json").read_text()), load_file(folder / "poise.safetensors")


@pytest.mark.slow
def test_a_run_that_samples_ahead_trains_is_killed_and_goes_on(overrides, tmp_path):
    overrides = [
        *overrides,
        "trainer.v1.trainer_mode=colocate_async",
        "actor_rollout_ref.rollout.n=3",
        "algorithm.rollout_correction.rollout_is=token",
    ]
    killed = Run(overrides, tmp_path, tmp_path / "killed.log")
    killed.killed_after(f"step:{SAVED_AT + 1} ")
    resumed = Run(overrides, tmp_path, tmp_path / "resumed.log").finished()
    assert resumed.metric("training/global_step") == list(range(SAVED_AT + 1, STEPS + 1))
    for run, steps in ((killed, SAVED_AT + 1), (resumed, STEPS - SAVED_AT)):
        assert run.metric("poise/ungradable_share")[:steps] == run.metric("poise/alone_share")[:steps] == [0.0] * steps
        assert all(abs(value) > 0 for value in run.metric("critic/advantages/max")[:steps])
    # Rollouts of earlier policies were trained on, which is what this trainer is about.
    assert max(killed.metric("training/off_policy/trajectory_staleness_worst/max")) >= 1
    plain, arrays = saved(resumed, STEPS)
    assert plain["fitted_for"]["layers"] == [0, 1]
    assert len(arrays["method.history.keys"]) == 16


def test_a_run_trains_and_one_that_was_killed_arrives_at_the_same_baseline(overrides, tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole = Run(overrides, tmp_path / "whole", tmp_path / "whole.log").finished()
    # The weights that sample are the actor's, in every step: poise's features are of the policy that sampled.
    differences = whole.metric("training/rollout_probs_diff_max")
    assert len(differences) == STEPS
    assert max(differences) < 1e-5
    assert len(set(whole.metric("critic/score/mean"))) == STEPS
    assert all(abs(value) > 0 for value in whole.metric("critic/advantages/max"))
    assert whole.metric("poise/ungradable_share") == whole.metric("poise/alone_share") == [0.0] * STEPS
    plain, arrays = saved(whole, STEPS)
    assert plain["fitted_for"]["layers"] == [0, 1]
    assert plain["widths"] == [32, 32, 3]

    killed = Run(overrides, tmp_path / "killed", tmp_path / "killed.log")
    killed.killed_after(f"step:{SAVED_AT + 1} ")
    assert (killed.folder / "latest_checkpointed_iteration.txt").read_text() == str(SAVED_AT)
    resumed = Run(overrides, tmp_path / "killed", tmp_path / "resumed.log").finished()
    assert resumed.metric("training/global_step") == list(range(SAVED_AT + 1, STEPS + 1))
    again, same = saved(resumed, STEPS)
    assert {name: again[name] for name in ("preset", "recipe", "fitted_for")} == {
        name: plain[name] for name in ("preset", "recipe", "fitted_for")
    }
    assert_close(same["scoreboard"], arrays["scoreboard"], rtol=1e-4, atol=1e-6)
    assert sorted(same["method.history.keys"].tolist()) == sorted(arrays["method.history.keys"].tolist())
    for name in ("poise/value_error", "critic/score/mean", "critic/advantages/max", "critic/advantages/min"):
        assert resumed.metric(name) == pytest.approx(whole.metric(name)[SAVED_AT:], rel=1e-3, abs=1e-5)
