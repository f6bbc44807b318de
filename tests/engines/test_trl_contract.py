"""The seams of TRL that `poise.engines.trl` is sewn to: each failure says which one an upgrade has opened."""

import inspect
import re

import pytest
from transformers import Trainer
from transformers.trainer_utils import rotate_checkpoints
from trl import GRPOConfig, GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from poise.engines import trl as engine
from poise.engines.trl import PoiseTrainer, untested_release_warning
from poise.engines.trl.checkpoints import CheckpointedTrainer

METHODS = {
    "_get_per_token_logps_and_entropies": ["self", "model", "input_ids", "attention_mask", "logits_to_keep"],
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_generate_and_score_completions": ["self", "inputs"],
    "compute_loss": ["self", "model", "inputs"],
    "_get_train_sampler": ["self", "dataset"],
    "train": ["self", "resume_from_checkpoint"],
    "_save_checkpoint": ["self", "model", "trial"],
    "_load_optimizer_and_scheduler": ["self", "checkpoint"],
    "_get_output_dir": ["self", "trial"],
}


def source(name: str) -> str:
    return inspect.getsource(getattr(GRPOTrainer, name))


@pytest.mark.parametrize("name", METHODS)
def test_method_has_the_arguments_that_are_passed_on(name):
    method = getattr(GRPOTrainer, name, None)
    assert method is not None, f"GRPOTrainer no longer has {name}, which PoiseTrainer overrides or calls"
    found = list(inspect.signature(method).parameters)[: len(METHODS[name])]
    assert found == METHODS[name], f"GRPOTrainer.{name} now starts with {found}, PoiseTrainer passes {METHODS[name]}"


@pytest.mark.parametrize("name", ["batch_size", "compute_entropy"])
def test_log_prob_pass_takes_options_by_keyword(name):
    parameters = inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters
    assert name in parameters, f"_get_per_token_logps_and_entropies no longer takes {name}=, which PoiseTrainer sets"


def test_overridden_methods_are_those_under_contract():
    parts = (PoiseTrainer, CheckpointedTrainer)
    own = {name for part in parts for name, member in vars(part).items() if inspect.isfunction(member)}
    overridden = {name for name in own if hasattr(GRPOTrainer, name)} - {"__init__"}
    assert overridden == set(METHODS)


SCORE = "_generate_and_score_completions"
PASS = "_get_per_token_logps_and_entropies"
SEAMS = [
    (SCORE, r'"advantages": advantages', "returns its advantages by that key"),
    (SCORE, r'output\["old_per_token_logps"\] = old_per_token_logps', "returns the very tensor that the pass gave"),
    (SCORE, r'self\._logs\["advantages"\]\.extend', "keeps advantages for its tables in `_logs`"),
    (SCORE, r'self\._logs\["completion"\]\.extend\(gather_object', "keeps the completions of all processes in `_logs`"),
    (SCORE, r'self\._logs\["prompt"\]\.extend\(gather_object', "keeps the prompts of all processes in `_logs`"),
    (SCORE, r"self\.accelerator\.process_index \* len\(prompts\)", "gives each process consecutive rows"),
    (SCORE, r"gradient_accumulation_steps % generate_every != 0", "skips the behaviour pass on the known condition"),
    ("_calculate_rewards", r"gather\(rewards_per_func\)", "gathers the rewards over processes"),
    (PASS, r"return logps, entropies", "returns log-probabilities, then entropies"),
    ("_prepare_inputs", r'"train" if self\.model\.training', "tells training from evaluation by `model.training`"),
    ("__init__", r'outputs=\("log_probs", "entropy"\)', "computes entropies in every pass, where they cost nothing"),
]


@pytest.mark.parametrize(("name", "pattern", "what"), SEAMS)
def test_source_of_trl_still_does_what_is_relied_on(name, pattern, what):
    assert re.search(pattern, source(name)), f"GRPOTrainer.{name} no longer {what}"


def test_checkpoint_hooks_are_called_by_the_host():
    assert "self._load_optimizer_and_scheduler(" in inspect.getsource(Trainer), "Trainer no longer restores by method"
    assert "self._save_checkpoint(" in inspect.getsource(Trainer), "Trainer no longer saves by method"


def test_checkpoints_are_written_where_the_host_is_told():
    saving = inspect.getsource(Trainer._save_checkpoint)
    assert "run_dir = self._get_output_dir(trial=trial)" in saving, "Trainer no longer asks where checkpoints go"
    assert "rotate_checkpoints(" in saving, "Trainer no longer deletes old checkpoints when it saves"
    assert {"output_dir", "save_total_limit", "best_model_checkpoint", "use_mtime"} <= set(
        inspect.signature(rotate_checkpoints).parameters
    ), "transformers.trainer_utils.rotate_checkpoints takes other arguments now"


def test_gradient_checkpointing_can_be_switched_off():
    assert list(inspect.signature(disable_gradient_checkpointing).parameters)[:2] == [
        "model",
        "gradient_checkpointing_kwargs",
    ], "trl.models.utils.disable_gradient_checkpointing takes other arguments now"


@pytest.mark.parametrize(
    "name",
    [
        "mask_truncated_completions",
        "multi_objective_aggregation",
        "num_iterations",
        "scale_rewards",
        "steps_per_generation",
        "vllm_importance_sampling_correction",
    ],
)
def test_option_that_is_read_exists(name):
    assert name in GRPOConfig.__dataclass_fields__, f"GRPOConfig no longer has {name}, which PoiseConfig reads"


def test_untested_releases_are_met_with_a_sentence():
    assert untested_release_warning("1.15.2") is None
    assert untested_release_warning("1.16.0") is None
    for release in ("1.14.3", "1.17.0", "2.0.0"):
        assert f"found trl {release}" in (untested_release_warning(release) or "")


def test_public_names_are_exact():
    assert engine.__all__ == ["PoiseConfig", "PoiseTrainer"]
