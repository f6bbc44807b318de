"""The seams of verl that `poise.engines.verl` is sewn to: each failure says which one an upgrade has opened."""

import inspect
import re
from importlib.metadata import entry_points

import pytest
import verl
from omegaconf import OmegaConf
from packaging.version import Version
from verl.trainer import main_ppo
from verl.trainer.ppo.core_algos import get_adv_estimator_fn
from verl.trainer.ppo.v1 import trainer_base, trainer_colocate_async, trainer_sync
from verl.trainer.ppo.v1 import utils as trainer_utils
from verl.utils import import_utils, transferqueue_utils
from verl.workers import engine_workers
from verl.workers.engine import utils as engine_utils
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp import FSDPEngineWithLMHead

from poise.engines.verl import command as main
from poise.engines.verl import plugin, trainer, update
from poise.engines.verl.engine import VENDOR, PoiseFSDPEngine

PPOTrainer, TrainingWorker = trainer_base.PPOTrainer, engine_workers.TrainingWorker

METHODS = {
    (FSDPEngineWithLMHead, "forward_step"): ["self", "micro_batch", "loss_function", "forward_only"],
    (FSDPEngineWithLMHead, "prepare_model_inputs"): ["self", "micro_batch"],
    (FSDPEngineWithLMHead, "prepare_model_outputs"): ["self", "output", "output_args", "micro_batch"],
    (TrainingWorker, "__init__"): ["self", "config"],
    (PPOTrainer, "__init__"): ["self", "config"],
    (PPOTrainer, "_init_tokenizer"): ["self"],
    (PPOTrainer, "_init_dataloader"): ["self"],
    (PPOTrainer, "_setup"): ["self"],
    (PPOTrainer, "_init_resource_pool_mgr"): ["self"],
    (PPOTrainer, "_compute_old_log_prob"): ["self", "batch", "metrics"],
    (PPOTrainer, "_compute_advantage"): ["self", "batch", "metrics"],
    (PPOTrainer, "_update_actor"): ["self", "batch", "metrics"],
    (PPOTrainer, "_compute_metrics"): ["self", "batch", "metrics", "timing_raw"],
    (PPOTrainer, "_val_metrics_update"): ["self", "data_sources", "sample_uids", "reward_extra_infos_dict"],
    (PPOTrainer, "_save_checkpoint"): ["self"],
    (PPOTrainer, "_load_checkpoint"): ["self"],
}


def source(what):
    return inspect.getsource(what)


@pytest.mark.parametrize(("owner", "name"), METHODS, ids=lambda each: getattr(each, "__name__", each))
def test_method_has_the_arguments_that_are_passed_on(owner, name):
    method = getattr(owner, name, None)
    assert method is not None, f"verl's {owner.__name__} no longer has {name}, which poise overrides"
    found = list(inspect.signature(method).parameters)[: len(METHODS[owner, name])]
    assert found == METHODS[owner, name], f"verl's {owner.__name__}.{name} now starts with {found}"


def test_overridden_methods_are_those_under_contract():
    for own, host in ((PoiseFSDPEngine, FSDPEngineWithLMHead), (trainer.PoiseTrainer, PPOTrainer)):
        defined = vars(own) | (vars(update.PoiseUpdate) if host is PPOTrainer else {})
        members = {name for name, member in defined.items() if inspect.isfunction(member) and hasattr(host, name)}
        assert members == {name for owner, name in METHODS if owner is host}


TaskRunner = main_ppo.TaskRunnerV1.__ray_metadata__.modified_class
SEAMS = [
    (
        PPOTrainer._update_actor,
        r'"global_batch_size": ppo_mini_batch_size',
        "divides by the rows of a minibatch, filled-in ones too",
    ),
    (
        main_ppo.TaskRunnerV1.__ray_metadata__.modified_class.run,
        r"OmegaConf\.resolve\(config\)",
        "resolves the whole configuration",
    ),
    (
        PPOTrainer._setup,
        r"self\._init_tokenizer\(\)[\s\S]*create_resource_pool\(\)",
        "reads the model before workers start",
    ),
    (
        PPOTrainer._setup,
        r"_init_resource_pool_mgr\(\)[\s\S]*role_worker_mapping\[actor_role\]",
        "starts the actor from `role_worker_mapping`",
    ),
    (
        PPOTrainer._init_resource_pool_mgr,
        r"role_worker_mapping\[role\] = ray\.remote\(ActorRolloutRefWorker\)",
        "makes a Ray actor of a plain worker class",
    ),
    (
        PPOTrainer._step_once,
        r"_balance_batch[\s\S]*_compute_old_log_prob[\s\S]*_compute_advantage[\s\S]*_update_actor",
        "has the known order of a step",
    ),
    (PPOTrainer._compute_old_log_prob, r"batch\.extra_info\.update\(", "keeps what else stands in `extra_info`"),
    (
        PPOTrainer._compute_old_log_prob,
        r'"calculate_entropy": True',
        "asks for entropies in the pass over old log-probs",
    ),
    (PPOTrainer._compute_advantage, r'"advantages", "returns"', "writes its advantages by these names"),
    (PPOTrainer._compute_advantage, r'"rm_scores"', "finds rewards by the name `rm_scores`"),
    (PPOTrainer._fetch_one_gen_batch, r'"raw_prompt"', "carries prompts by the name `raw_prompt`"),
    (PPOTrainer._save_checkpoint, r'f"global_step_\{self\.global_steps\}"', "names a checkpoint by its step"),
    (PPOTrainer._save_checkpoint, r"latest_checkpointed_iteration\.txt", "marks a complete checkpoint last"),
    (
        PPOTrainer._load_checkpoint,
        r"find_latest_ckpt_path\(checkpoint_folder\)",
        "looks for the newest checkpoint by `find_latest_ckpt_path`",
    ),
    (PPOTrainer._load_checkpoint, r'resume_mode == "resume_path"', "resumes from a path in that mode"),
    (
        trainer_utils.compute_advantage_for_multi_trajectories,
        r'key\.rsplit\("_", 2\)',
        "names rows {uid}_{session}_{index}",
    ),
    (
        FSDPEngineWithLMHead.forward_step,
        r"prepare_model_inputs\([\s\S]*self\.module\([\s\S]*prepare_model_outputs\(",
        "prepares, calls its module, and prepares outputs in one step",
    ),
    (
        FSDPEngineWithLMHead.prepare_model_outputs,
        r'model_output\["log_probs"\][\s\S]*model_output\["entropy"\]',
        "returns log-probs and entropies by these names",
    ),
    (
        engine_utils.postprocess_batch_func,
        r'for key, val in o\["model_output"\]\.items\(\)',
        "passes on any key of a micro-batch's output",
    ),
    (
        transferqueue_utils._async_update_meta_with_output,
        r"isinstance\(v, torch\.Tensor",
        "puts any tensor of a worker's output on the bus",
    ),
    (
        engine_workers.ActorRolloutRefWorker.init_model,
        r"self\.actor_worker_cls\(config=",
        "makes its actor from `actor_worker_cls`",
    ),
    (
        EngineRegistry.get_engine_cls,
        r'os\.getenv\("VERL_ENGINE_VENDOR"\)',
        "lets the environment choose an engine's vendor",
    ),
    (TaskRunner.run, r"get_trainer_cls\(config\.trainer\.v1\.trainer_mode\)", "looks its trainer up by the mode"),
    (verl, r'_entry_points\(group="verl\.plugins"\)', "loads plug-ins by the group `verl.plugins`"),
]


@pytest.mark.parametrize(("what", "pattern", "does"), SEAMS, ids=[does for _, _, does in SEAMS])
def test_source_of_verl_still_does_what_is_relied_on(what, pattern, does):
    assert re.search(pattern, source(what)), f"verl's {what.__name__} no longer {does}"


def test_trainers_are_looked_up_by_mode():
    assert set(trainer.TRAINERS) == set(trainer_base.TRAINER_REGISTRY)
    assert trainer_base.get_trainer_cls("sync") is trainer_sync.PPOTrainerSync
    assert trainer_base.get_trainer_cls("colocate_async") is trainer_colocate_async.PPOTrainerColocateAsync
    for mode, own in trainer.TRAINERS.items():
        assert issubclass(own, trainer_base.TRAINER_REGISTRY[mode])


def test_poises_engine_is_registered_for_every_strategy_that_is_served():
    for strategy in ("fsdp", "fsdp2"):
        for device in ("cuda", "npu", "cpu"):
            assert EngineRegistry._engines["language_model"][strategy][device, VENDOR] is PoiseFSDPEngine


def test_the_name_of_the_estimator_is_known_to_verl():
    assert get_adv_estimator_fn("poise") is trainer.no_advantages


def test_the_plugin_is_loaded_and_mends_what_it_says():
    assert "poise" in [each.name for each in entry_points(group="verl.plugins")]
    main.require_plugin()
    assert plugin.trl_without_value_head() is not import_utils.is_trl_available()


@pytest.mark.parametrize("wanted", ["none", "another,third"])
def test_a_plugin_that_is_switched_off_stops_the_run(wanted, monkeypatch):
    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", wanted)
    with pytest.raises(RuntimeError, match=f"must be 'auto' or name 'poise', got '{wanted}'"):
        main.require_plugin()
    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", "another,poise")
    main.require_plugin()


def test_a_plugin_that_is_not_installed_stops_the_run(monkeypatch):
    monkeypatch.setattr(main, "entry_points", lambda group: [])
    with pytest.raises(RuntimeError, match="poise-rlvr must be installed on every node"):
        main.require_plugin()


def test_a_plugin_that_failed_stops_the_run_with_the_cause(monkeypatch):
    def fails(name):
        raise ImportError("no module named flux")

    monkeypatch.setattr(main, "import_module", fails)
    with pytest.raises(RuntimeError, match=r"could not load poise's plug-in: ImportError: no module named flux"):
        main.require_plugin()


def test_the_task_runner_looks_at_the_plugin_first(monkeypatch):
    def missing():
        raise RuntimeError("not there")

    monkeypatch.setattr(main, "require_plugin", missing)
    with pytest.raises(RuntimeError, match="not there"):
        main.PoiseTaskRunner().run(OmegaConf.create())


def test_untested_releases_are_met_with_a_sentence():
    assert Version(verl.__version__).release[:2] == main.TESTED_RELEASE
    assert main.untested_release_warning("0.9.1") is None
    for release in ("0.8.2", "0.10.0", "1.0.0"):
        assert f"found verl {release}" in (main.untested_release_warning(release) or "")
