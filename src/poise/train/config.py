"""Settings of a run, and how text becomes one of them.

A setting is a field of `RunSettings` or of `PoiseConfig`, found in the dataclass itself and read by its type,
so that every option of TRL is an option of `poise train`. What is given wins over `EMBEDDED_DEFAULTS` (with another
model `OTHER_MODEL_DEFAULTS`), and those over the defaults of the dataclasses.
"""

import difflib
import enum
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from transformers.utils import is_torch_bf16_gpu_available
from trl import ModelConfig

from poise.engines.trl import PoiseConfig
from poise.models.named import check_model_name, model_size
from poise.tasks.embedded import problems
from poise.tasks.grading import TIMED_OUT

EMBEDDED_DEFAULTS: dict[str, Any] = {
    # 64 prompts x 2 rollouts a generation batch, in 2 minibatches: features cost no extra forward pass.
    "per_device_train_batch_size": 64,
    "steps_per_generation": 2,
    "num_generations": 2,
    "max_completion_length": 64,
    # At 1e-3 the policy is right more often for 15 steps and then falls apart.
    "learning_rate": 3e-4,
    "lr_scheduler_type": "linear",
    "warmup_steps": 10,
    "max_grad_norm": 1.0,
    "gradient_checkpointing": False,
    "bf16": False,
    "save_strategy": "steps",
    # The newest to go on from, and two before it should the disk have spoiled that one.
    "save_steps": 0.1,
    "save_total_limit": 3,
    "disable_tqdm": True,
    "report_to": [],
    "dataloader_pin_memory": False,
    "pad_to_multiple_of": None,
}
"""Options of `PoiseConfig` under which the embedded policy learns in minutes on two CPU cores."""

EMBEDDED_ALONE = ("max_completion_length", "learning_rate", "lr_scheduler_type", "warmup_steps", "bf16")
"""Those of `EMBEDDED_DEFAULTS` that say nothing about other models."""

OTHER_MODEL_DEFAULTS: dict[str, Any] = {
    name: value for name, value in EMBEDDED_DEFAULTS.items() if name not in EMBEDDED_ALONE
} | {
    "per_device_train_batch_size": 16,
    "max_completion_length": 512,
    "warmup_steps": 10,
    "bf16": is_torch_bf16_gpu_available(),
}

LEARNING_RATES = ((3e8, 2e-5), (1e9, 1e-5), (3e9, 5e-6), (6e9, 2e-6), (math.inf, 1e-6))
"""Of other models with up to so many parameters, all of them trained."""
ADAPTER_FACTOR = 10
"""How much higher rates adapters stand than whole models."""

OTHER_NAMES = {"max_steps": "steps"}
"""Fields of TRL that a run has under a shorter name."""

EVALUATION_OF_TRL = (
    *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "eval_accumulation_steps", "num_generations_eval"),
    *("per_device_eval_batch_size", "do_eval", "load_best_model_at_end", "metric_for_best_model"),
)
WITHOUT_EFFECT = {
    **dict.fromkeys(EVALUATION_OF_TRL, "held-out problems are solved every check_every steps"),
    "num_train_epochs": "steps says how long a run is",
    "do_train": "the command trains",
    "do_predict": "poise eval measures",
    "disable_tqdm": "the command has its own bar, and --json",
}
"""Fields of TRL that change nothing in a run, and what does."""

DECIDED_BY_RUN = {
    "output_dir": "the run's checkpoints go to its own folder: give --output and --name",
    "hub_token": "a config file is no place for a token: log in with `hf auth login`",
}
"""Fields of TRL that cannot be set, and why."""


@dataclass(frozen=True)
class RunSettings:
    """What a training run is: everything but its name and place."""

    model: str = field(
        default="embedded", metadata={"help": "'embedded', 'smollm2', a folder with a checkpoint or a name on the hub."}
    )
    task: str = field(
        default="embedded",
        metadata={"help": "'embedded', 'reasoning-gym:NAME?field=value', a .jsonl file, a data set, or 'A + 2*B'."},
    )
    reward: list[str] | None = field(
        default=None, metadata={"help": "Reward functions, package.module:function. Default: the task's verifier."}
    )
    chat: bool = field(
        default=True, metadata={"help": "Ask by the tokenizer's chat template, if it has one; false: plain text."}
    )
    seconds_a_rollout: float = field(default=10.0, metadata={"help": "Time limit of one verdict of a verifier."})
    mebibytes_a_rollout: int = field(default=2048, metadata={"help": "Memory limit of one verdict of a verifier."})
    on_verifier_timeout: str = field(
        default="wrong",
        metadata={"help": "'wrong' or 'ungradable': a rollout on which the verifier came to no end twice."},
    )
    families: list[str] | None = field(default=None, metadata={"help": "Families of the embedded world. Default: all."})
    seed: int = field(default=0, metadata={"help": "Of problems, sampling and training."})
    steps: int = field(default=240, metadata={"help": "Updates of the policy; two make use of one generation batch."})
    eval_prompts: int = field(default=500, metadata={"help": "Held-out problems to solve before and after."})
    check_prompts: int = field(default=256, metadata={"help": "Held-out problems to solve now and then in between."})
    check_every: int | None = field(
        default=None, metadata={"help": "Steps from one such check to the next; 0 for none. Default: a fifteenth."}
    )
    threads: int | None = field(
        default=None,
        metadata={
            "help": "Of torch. Default: 1 for the embedded model, which is too small to share; else torch's own."
        },
    )
    trainer: dict[str, Any] = field(default_factory=dict)
    """Fields of `PoiseConfig` that differ from its defaults."""
    loading: dict[str, Any] = field(default_factory=dict)
    """Fields of TRL's `ModelConfig` that differ from its defaults: type of the weights, adapter, quantisation."""

    def __post_init__(self) -> None:
        for name, lowest in (
            ("steps", 1),
            ("eval_prompts", 1),
            ("check_prompts", 1),
            ("check_every", 0),
            ("threads", 1),
            ("mebibytes_a_rollout", 1),
        ):
            number = getattr(self, name)
            if number is not None and number < lowest:
                raise ValueError(f"{name} must be {lowest} or more, got {number}")
        if not (save_steps := self.trainer.get("save_steps", 1)) > 0:
            raise ValueError(f"save_steps must be more than 0, got {save_steps}")
        if not 0 < (top_p := self.trainer.get("top_p", 1.0)) <= 1:
            raise ValueError(f"top_p must be greater than 0 and at most 1, got {top_p}")
        if not self.seconds_a_rollout > 0:
            raise ValueError(f"seconds_a_rollout must be more than 0, got {self.seconds_a_rollout}")
        if self.on_verifier_timeout not in TIMED_OUT:
            raise ValueError(f"on_verifier_timeout needs {' or '.join(TIMED_OUT)}, got {self.on_verifier_timeout!r}")
        check_model_name(self.model, trust_remote_code=bool(self.trainer.get("trust_remote_code")))
        options = self.model_options()
        if options.lora_r < 1 or options.lora_alpha < 1:
            raise ValueError(f"lora_r and lora_alpha must be 1 or more, got {options.lora_r} and {options.lora_alpha}")
        adapting = [name for name in self.loading if name.startswith("lora_") or name in ("use_dora", "use_rslora")]
        if adapting and not options.use_peft:
            raise ValueError(f"{adapting[0]} does nothing without use_peft: give --use-peft too")
        if (options.load_in_4bit or options.load_in_8bit) and not options.use_peft:
            raise ValueError("weights of 4 or 8 bits cannot be trained, only an adapter on them: give --use-peft too")
        problems(0, seed=0, families=self.families)  # names an unknown family
        if self.families and self.task != "embedded":
            raise ValueError(f"families are those of the task embedded, and the task is {self.task!r}")

    @property
    def task_spec(self) -> str:
        """The task, with the chosen families in its text."""
        return f"embedded?families={','.join(self.families)}" if self.families else self.task

    def steps_between_checks(self, config: PoiseConfig) -> int:
        """Steps from one small held-out check to the next; 0 for none. Whole generation batches where not given."""
        if self.check_every is not None:
            return self.check_every
        return -(-max(1, self.steps // 15) // config.steps_between_generations) * config.steps_between_generations

    @property
    def torch_threads(self) -> int | None:
        """Threads of torch; None to leave them as they are."""
        return 1 if self.threads is None and self.model == "embedded" else self.threads

    def model_options(self) -> ModelConfig:
        """TRL's options of loading the model and of an adapter on it.

        Raises:
            ValueError: If they contradict each other.
        """
        return ModelConfig(**self.loading)

    def poise_config(self, output_dir: Path | str) -> PoiseConfig:
        """The trainer's configuration; where not given otherwise, it logs once a generation batch.

        Raises:
            ValueError: If options of the trainer contradict each other.
        """
        config = PoiseConfig(str(output_dir), seed=self.seed, max_steps=self.steps, **self.trainer)
        if "logging_steps" not in self.trainer:
            config.logging_steps = config.steps_between_generations
        return config

    def resolved(self, config: PoiseConfig) -> dict[str, Any]:
        """Every setting by name, in plain values from which `run_settings` makes the same run again."""
        own = {name: getattr(self, name) for name in own_types()}
        own |= {"check_every": self.steps_between_checks(config), "threads": self.torch_threads}
        # TRL takes one of two names for the size of a generation batch, and fills in the other.
        hidden = {"generation_batch_size", *DECIDED_BY_RUN, *OTHER_NAMES}
        rest = {name: _plain(getattr(config, name)) for name in trainer_types() if name not in hidden}
        options = self.model_options()
        return own | {name: getattr(options, name) for name in loading_types()} | rest | own


def own_types() -> dict[str, Any]:
    """The type of each field of `RunSettings` that can be given."""
    hints = typing.get_type_hints(RunSettings)
    return {each.name: hints[each.name] for each in fields(RunSettings) if each.name not in ("trainer", "loading")}


def loading_types() -> dict[str, Any]:
    """The type of each field of TRL's `ModelConfig` that a run takes."""
    return {
        each.name: each.type
        for each in fields(ModelConfig)
        if each.name not in ("model_name_or_path", "lora_task_type")
    }


def trainer_types() -> dict[str, Any]:
    """The type of each field of `PoiseConfig`, in its order."""
    hints = typing.get_type_hints(PoiseConfig)
    return {each.name: hints[each.name] for each in fields(PoiseConfig) if each.init}


def run_settings(*sources: Mapping[str, Any]) -> RunSettings:
    """Settings from names and values; a value is of its field's type already, or text.

    Args:
        sources: Later ones win over earlier ones.

    Raises:
        ValueError: If a name is unknown (the sentence has the closest one), cannot be set or comes twice in a source,
            or a value is not of its field's type.
    """
    own, of_trainer, of_loading = own_types(), trainer_types(), loading_types()
    values: dict[str, Any] = {}
    usual = {each.name: each.default for each in fields(PoiseConfig)} | EMBEDDED_DEFAULTS
    for source in sources:
        seen: dict[str, str] = {}
        for given_name, value in source.items():
            name = OTHER_NAMES.get(given_name, given_name)
            if name in DECIDED_BY_RUN:
                raise ValueError(f"{name} cannot be set: {DECIDED_BY_RUN[name]}")
            if name in seen:
                raise ValueError(f"{seen[name]} and {given_name} are the same setting: give one of them")
            wanted = (of_loading | of_trainer | own).get(name)
            if wanted is None:
                raise ValueError(unknown_name_sentence(given_name, [*own, *OTHER_NAMES, *of_trainer, *of_loading]))
            seen[name] = given_name
            values[name] = typed_value(value, wanted, name=given_name)
            if name in WITHOUT_EFFECT and values[name] != usual[name]:  # config files hold them all
                raise ValueError(f"{given_name} changes nothing in a run: {WITHOUT_EFFECT[name]}")
    defaults = dict(EMBEDDED_DEFAULTS if values.get("model", "embedded") == "embedded" else OTHER_MODEL_DEFAULTS)
    if "generation_batch_size" in values:  # TRL takes one of the two
        del defaults["steps_per_generation"]
    mine = {name: values.pop(name) for name in own if name in values}
    standard = ModelConfig()
    loading = {name: values.pop(name) for name in of_loading if name in values and name not in of_trainer}
    loading = {name: value for name, value in loading.items() if value != getattr(standard, name)}
    settings = RunSettings(**mine, trainer=defaults | values, loading=loading)
    if "learning_rate" not in settings.trainer:
        settings.trainer["learning_rate"] = default_learning_rate(settings)
    return settings


def default_learning_rate(settings: RunSettings) -> float:
    """A rate to begin with, by the number of the model's parameters and whether an adapter is trained."""
    trusted = bool(settings.trainer.get("trust_remote_code"))
    size, is_adapter = model_size(settings.model, trust_remote_code=trusted)
    rate = next(rate for most, rate in LEARNING_RATES if size <= most)
    return rate * ADAPTER_FACTOR if is_adapter or settings.model_options().use_peft else rate


def unknown_name_sentence(name: str, known: list[str]) -> str:
    """Say that there is no such setting, and which one is closest."""
    closest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; the closest is {closest[0]}" if closest else ""
    return f"there is no setting {name}{hint}; `poise train --list-options` lists all"


def typed_value(value: Any, wanted: Any, *, name: str) -> Any:
    """A value, given as text or as YAML gives it, in a field's type.

    "null" is None where that is allowed, and "none" too unless the field takes text. Lists are written `1,2` or
    `[1, 2]`, mappings as in YAML or JSON.

    Args:
        value: What was given.
        wanted: The field's annotation.
        name: The field, for the error's sentence.

    Raises:
        ValueError: If the value cannot be read as the type.
    """
    choices = typing.get_args(wanted) if typing.get_origin(wanted) in (typing.Union, types.UnionType) else (wanted,)
    if types.NoneType in choices and (value is None or value == "null" or (value == "none" and str not in choices)):
        return None
    for choice in sorted(choices, key=_reading_order):
        try:
            return _read(value, choice)
        except (ValueError, yaml.YAMLError):
            # Names that an enumeration does not have are not rescued by the host's loose `Enum | str`.
            if isinstance(choice, enum.EnumType):
                break
    named = any(isinstance(choice, enum.EnumType) for choice in choices)
    shown = [choice for choice in choices if choice is not types.NoneType and not (named and choice is str)]
    needed = " or ".join(dict.fromkeys(map(_described, shown)))
    raise ValueError(f"{name} needs {needed}, got {value!r}")


def _reading_order(choice: Any) -> int:
    """Text comes last: every text is one."""
    order = [bool, int, float]
    if choice in order:
        return order.index(choice)
    return 9 if choice is str else 5


def _read(value: Any, choice: Any) -> Any:
    origin = typing.get_origin(choice) or choice
    if isinstance(choice, enum.EnumType):
        return choice(value.value if isinstance(value, enum.Enum) else value).value
    if origin is typing.Literal and value in typing.get_args(choice):
        return value
    if choice is bool:
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if isinstance(value, bool):
            return value
    elif choice in (int, float) and not isinstance(value, bool):
        if isinstance(value, str):
            return choice(value)
        if isinstance(value, int) or (isinstance(value, float) and choice is float):
            return choice(value)
    elif origin is list:
        inner = (typing.get_args(choice) or (str,))[0]
        if isinstance(value, str) and value.startswith("["):
            value = yaml.safe_load(value)
        elif isinstance(value, str):
            value = [one.strip() for one in value.split(",") if one.strip()]
        if isinstance(value, list | tuple):
            return [_read(one, inner) for one in value]
    elif origin is dict:
        if isinstance(value, str) and value.startswith("{"):
            value = yaml.safe_load(value)
        if isinstance(value, Mapping):
            return dict(value)
    elif choice is str and isinstance(value, str):
        return value
    raise ValueError(f"{value!r} is no {choice}")


def _described(choice: Any) -> str:
    if isinstance(choice, type) and issubclass(choice, enum.Enum):
        return "one of " + ", ".join(str(member.value) for member in choice)
    origin = typing.get_origin(choice) or choice
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        list: "a list such as 1,2",
        dict: "a mapping such as {a: 1}",
    }
    return words.get(origin, str(choice))


def _plain(value: Any) -> Any:
    """As YAML can hold it."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "to_dict"):  # accelerate's configuration objects
        return _plain(value.to_dict())
    raise ValueError(f"a setting must be a plain value, got a {type(value).__name__}")
