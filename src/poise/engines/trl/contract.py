"""The contract with TRL: what `PoiseTrainer` overrides, calls and relies on, checked when it is imported.

TRL is subclassed, and six of the methods are private to it. Any release whose names, signatures and behaviours are
those below is served; of another one the first difference is said in one sentence. What shows only when a batch is
generated and scored is checked on every batch.
"""

import inspect
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import version
from typing import Any

import torch
from transformers.trainer_utils import rotate_checkpoints
from trl import GRPOConfig, GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import RepeatSampler, shuffle_sequence_dict, split_tensor_dict

RUN_WITH = ("1.16",)
"""Releases that the tests of this engine have been run with; others were not run."""
PASS = "_get_per_token_logps_and_entropies"
METHODS: dict[str, tuple[str, ...]] = {
    PASS: ("self", "model", "input_ids", "attention_mask", "logits_to_keep"),
    "_generate": ("self", "prompts"),
    "_calculate_rewards": ("self", "inputs", "prompts", "completions", "completion_ids_list"),
    "_generate_and_score_completions": ("self", "inputs"),
    "compute_loss": ("self", "model", "inputs"),
    "_get_train_sampler": ("self", "dataset"),
    "train": ("self", "resume_from_checkpoint"),
    "_save_checkpoint": ("self", "model", "trial"),
    "_load_optimizer_and_scheduler": ("self", "checkpoint"),
    "_load_rng_state": ("self", "checkpoint"),
    "_get_output_dir": ("self", "trial"),
}
"""Methods that are overridden or called, with the arguments that are passed on by place."""
KEYWORDS: dict[Any, tuple[str, ...]] = {
    getattr(GRPOTrainer, PASS, None): ("batch_size", "compute_entropy"),
    disable_gradient_checkpointing: ("model", "gradient_checkpointing_kwargs"),
    rotate_checkpoints: ("output_dir", "save_total_limit", "best_model_checkpoint", "use_mtime"),
}
OPTIONS = (
    "beta",
    "disable_dropout",
    "generation_kwargs",
    "mask_truncated_completions",
    "multi_objective_aggregation",
    "num_iterations",
    "scale_rewards",
    "steps_per_generation",
    "top_entropy_quantile",
    "vllm_importance_sampling_correction",
)
"""Options of TRL that are read."""


class ContractError(ImportError):
    """TRL is not what `PoiseTrainer` is made for; the sentence says where."""


def differences() -> Iterator[str]:
    """What differs from the contract in the TRL that is installed, in words that follow "TRL changed"."""
    for name, wanted in METHODS.items():
        found = _parameters(getattr(GRPOTrainer, name, None))
        if found[: len(wanted)] != wanted:
            yield f"GRPOTrainer.{name}, which takes ({', '.join(wanted)}, ...) and is now {_told(found)}"
    for function, keywords in KEYWORDS.items():
        if not set(keywords) <= set(_parameters(function)):
            name = getattr(function, "__name__", PASS)
            yield f"{name}, which takes {', '.join(keywords)} by name and is now {_told(_parameters(function))}"
    for name in OPTIONS:
        if name not in GRPOConfig.__dataclass_fields__:
            yield f"GRPOConfig, which no longer has the option {name}"
    prompts = list(RepeatSampler(range(4), mini_repeat_count=2, batch_size=2, repeat_count=1, shuffle=False))
    if prompts != [0, 0, 1, 1, 2, 2, 3, 3]:
        yield f"RepeatSampler, which lays the rollouts of a prompt side by side and now gives {prompts}"
    rows = shuffle_sequence_dict({"first": torch.arange(4), "extra": torch.arange(4), "none": None})
    parts = split_tensor_dict(rows, 2)
    if not all(torch.equal(part["first"], part["extra"]) and len(part["extra"]) == 2 for part in parts):
        yield "shuffle_sequence_dict or split_tensor_dict, which keep a column that was added in the order of the rows"


def check() -> None:
    """Raise on the first difference.

    Raises:
        ContractError: If there is one.
    """
    for difference in differences():
        raise ContractError(_sentence(difference))


def was_run() -> bool:
    """Whether the tests have been run with the release that is installed."""
    return version("trl").rsplit(".", 1)[0] in RUN_WITH


def report() -> str:
    """One sentence on the TRL that is installed, for people."""
    found = list(differences())
    if found:
        return "; ".join(map(_sentence, found))
    run = "were run with it" if was_run() else f"were not run with it, but with {' and '.join(RUN_WITH)}"
    return f"TRL {version('trl')} has all that the trainer rests on, and its tests {run}"


def check_generated(generated: Any, *, rows: int) -> None:
    """See that TRL's `_generate` gives completions second and the mask of the policy's own tokens third.

    Raises:
        ContractError: If it does not.
    """
    whole = isinstance(generated, tuple) and len(generated) > 2 and len(generated[1]) == rows
    if not whole or (generated[2] is not None and list(map(len, generated[2])) != list(map(len, generated[1]))):
        raise ContractError(_sentence("GRPOTrainer._generate, which gives prompts, completions, then masks of those"))


def check_scored(scored: Mapping[str, Any], logs: Mapping[str, Any]) -> None:
    """See that a scored generation batch has what is read of it and what is written over.

    Raises:
        ContractError: If it does not.
    """
    read = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages")
    missing = [name for name in read if name not in scored]
    missing += [f"_logs[{name!r}]" for name in ("advantages", "completion") if name not in logs]
    if missing:
        raise ContractError(_sentence(f"GRPOTrainer._generate_and_score_completions, which gave {', '.join(missing)}"))


@cache
def pass_inputs() -> tuple[str, ...]:
    """What TRL's log-probability pass takes beside tokens: pictures, and what tells whose they are."""
    known = {*METHODS[PASS], "batch_size", "compute_entropy", "compute_aux_loss"}
    return tuple(name for name in _parameters(getattr(GRPOTrainer, PASS)) if name not in known)


def _sentence(difference: str) -> str:
    return (
        f"TRL {version('trl')} changed {difference}: this poise is made for TRL as it was in {' and '.join(RUN_WITH)}"
    )


def _parameters(function: Any) -> tuple[str, ...]:
    return () if function is None else tuple(inspect.signature(function).parameters)


def _told(parameters: tuple[str, ...]) -> str:
    return f"({', '.join(parameters)})" if parameters else "gone"
