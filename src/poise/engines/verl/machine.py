"""What a run on verl needs of the machine: files, columns, model, sampler, loggers, reward function.

Each lack is one sentence, before Ray is started. What lies elsewhere (hdfs://, a name on the hub) is not looked at.
"""

import json
import netrc
import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, ListConfig
from verl.utils.import_utils import load_extern_object
from verl.utils.reward_score import default_compute_score
from verl.utils.tracking import Tracking

from poise.engines.verl.rewards import compute_score, known_sources, verifier_of
from poise.engines.verl.settings import PoiseSettings
from poise.features.hidden_states import checked_layers
from poise.models.named import check_no_own_code

SAMPLERS = {"vllm": "vllm", "sglang": "sglang", "trtllm": "tensorrt_llm"}
"""verl's samplers and the packages that they are."""

NEEDED_COLUMNS = ("prompt", "data_source", "reward_model")


def check_machine(config: DictConfig, settings: PoiseSettings) -> None:
    """Refuse what cannot be begun on this machine.

    Raises:
        ValueError: With one sentence, if something is missing or not what it has to be.
    """
    _check_sampler(config.actor_rollout_ref.rollout)
    _check_loggers(config.trainer.logger)
    _check_model(config, settings)
    _check_resume(config.trainer)
    sources = _check_data(config, settings)
    _check_reward(config.reward.custom_reward_function, sources)


def has_wandb_key() -> bool:
    """Whether wandb needs to ask nobody: a key in the environment or in a netrc file, or it is switched off."""
    if os.getenv("WANDB_API_KEY") or os.getenv("WANDB_MODE", "").lower() in ("offline", "disabled", "dryrun"):
        return find_spec("wandb") is not None
    host = os.getenv("WANDB_BASE_URL", "https://api.wandb.ai").split("://")[-1].split("/")[0].split(":")[0]
    file = Path(os.getenv("NETRC") or Path.home() / ".netrc")
    try:
        return find_spec("wandb") is not None and netrc.netrc(file).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _check_sampler(rollout: DictConfig) -> None:
    package = SAMPLERS.get(rollout.name)
    if package is not None and find_spec(package) is None:
        raise ValueError(
            f"actor_rollout_ref.rollout.name={rollout.name} needs the package {package}, which is not installed: "
            "docs/engines/verl.md has the line that installs poise with a sampler"
        )
    if package is None:
        from verl.workers.rollout.replica import RolloutReplicaRegistry

        registered = RolloutReplicaRegistry._registry
        if rollout.name not in registered:
            raise ValueError(
                f"actor_rollout_ref.rollout.name must be one of {', '.join(sorted({*SAMPLERS, *registered}))}; got "
                f"{rollout.name!r}"
            )


def _check_loggers(loggers: Any) -> None:
    names = [loggers] if isinstance(loggers, str) else list(loggers or [])
    for name in names:
        if name not in Tracking.supported_backend:
            raise ValueError(f"trainer.logger may name {', '.join(Tracking.supported_backend)}; got {name!r}")
    if "wandb" in names and not has_wandb_key():
        raise ValueError(
            "trainer.logger names wandb, and there is no key for it: run `wandb login`, set WANDB_API_KEY or "
            "WANDB_MODE=offline, or leave wandb out"
        )


def _check_model(config: DictConfig, settings: PoiseSettings) -> None:
    path = str(config.actor_rollout_ref.model.path)
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if path.startswith(("/", ".", "~")):
            raise ValueError(f"actor_rollout_ref.model.path={path} is no folder")
        return  # a name on the hub
    if not (folder / "config.json").is_file():
        raise ValueError(f"actor_rollout_ref.model.path={path} is no model: the folder holds no config.json")
    tokenizer = Path(config.actor_rollout_ref.model.get("tokenizer_path") or folder).expanduser()
    if tokenizer.is_dir() and not any(tokenizer.glob("*token*")):
        raise ValueError(f"actor_rollout_ref.model.path={path} has no tokenizer: the folder holds no tokenizer.json")
    from transformers import AutoConfig

    trusted = bool(config.actor_rollout_ref.model.get("trust_remote_code"))
    for each in () if trusted else (folder, tokenizer):
        check_no_own_code(each, option="actor_rollout_ref.model.trust_remote_code=True")
    model = AutoConfig.from_pretrained(folder, trust_remote_code=trusted).get_text_config()
    checked_layers(settings.layers, depth=model.num_hidden_layers)


def _check_resume(trainer: DictConfig) -> None:
    if trainer.resume_mode == "resume_path" and not Path(str(trainer.resume_from_path)).is_dir():
        raise ValueError(
            f"trainer.resume_mode=resume_path needs a folder global_step_N, got trainer.resume_from_path="
            f"{trainer.resume_from_path}"
        )


def _files(option: str, given: Any) -> list[Path]:
    """The local files that an option of data names."""
    names = list(given) if isinstance(given, list | tuple | ListConfig) else [given]
    if not names or None in names:
        raise ValueError(f"{option} needs a file with verl's columns, such as `poise data SPEC --format verl` writes")
    paths = [Path(str(name)).expanduser() for name in names if "://" not in str(name)]
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{option} names {path}, and there is no such file")
    return paths


def _check_data(config: DictConfig, settings: PoiseSettings) -> set[str]:
    """Refuse data without the columns that are read; return the sources to train on whose rows name no verifier."""
    data = config.data
    training, held_out = (_files(f"data.{which}_files", data[f"{which}_files"]) for which in ("train", "val"))
    if data.custom_cls.get("path"):
        _check_data_set_class(data.custom_cls)
        return set()
    needed = {*NEEDED_COLUMNS[1:], data.prompt_key}
    sources: set[str] = set()
    rows = 0
    for path in [*training, *held_out]:
        columns, number = _columns_and_rows(path)
        wanted = needed | ({settings.domain_column} if path in training else set())
        if missing := sorted(wanted - set(columns)):
            reason = " (poise.domain_column)" if missing == [settings.domain_column] else ""
            raise ValueError(
                f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}{reason}: it has "
                f"{', '.join(columns)}; `poise data` writes files with verl's columns"
            )
        if path in training:
            rows += number
            sources |= _sources_without_verifier(path)
    most = data.get("train_max_samples", -1)
    rows = min(rows, most) if most > 0 else rows
    if training and rows < data.train_batch_size:
        raise ValueError(
            f"data.train_batch_size={data.train_batch_size} prompts, and data.train_files have {rows}: a step needs "
            "as many"
        )
    return sources


def _columns_and_rows(path: Path) -> tuple[list[str], int]:
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            file = pyarrow.parquet.ParquetFile(path)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{path} is not parquet: {str(error).splitlines()[0]}") from error
        return file.schema_arrow.names, file.metadata.num_rows
    if path.suffix not in (".json", ".jsonl"):
        raise ValueError(f"verl reads .parquet, .json and .jsonl files; got {path}")
    rows = list(_json_rows(path))
    return list(rows[0]) if rows else [], len(rows)


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(filter(str.strip, file), start=1):
            try:
                yield dict(json.loads(line))
            except (ValueError, TypeError):
                raise ValueError(f"{path} line {number} is not a JSON object") from None


def _sources_without_verifier(path: Path) -> set[str]:
    """The data sources of rows whose `extra_info` does not name a verifier."""
    if path.suffix != ".parquet":
        rows: Iterator[dict[str, Any]] = _json_rows(path)
        return {str(row["data_source"]) for row in rows if not (row.get("extra_info") or {}).get("verifier")}
    import pyarrow.compute
    import pyarrow.parquet

    columns = [name for name in ("data_source", "extra_info") if name in pyarrow.parquet.read_schema(path).names]
    table = pyarrow.parquet.read_table(path, columns=columns)
    info = table.schema.field("extra_info").type if "extra_info" in columns else None
    if info is not None and info.get_field_index("verifier") >= 0:
        table = table.filter(pyarrow.compute.is_null(pyarrow.compute.struct_field(table["extra_info"], "verifier")))
    return {str(value) for value in table["data_source"].unique().to_pylist()}


def _loaded(option: str, path: str, name: str | None) -> Any:
    """An object of the user's, loaded as verl does."""
    if not path.startswith("pkg://") and not Path(path.removeprefix("file://")).is_file():
        raise ValueError(f"{option}.path={path} is no file (a module of a package is named pkg://package.module)")
    try:
        return load_extern_object(path, str(name))
    except AttributeError:
        raise ValueError(f"{option}.name={name} is not defined in {path}") from None
    except Exception as error:
        raise ValueError(f"{option}.path={path} cannot be imported: {type(error).__name__}: {error}") from error


def _check_data_set_class(chosen: DictConfig) -> None:
    from torch.utils.data import Dataset

    found = _loaded("data.custom_cls", chosen.path, chosen.name)
    if not (isinstance(found, type) and issubclass(found, Dataset)):
        raise ValueError(f"data.custom_cls.name={chosen.name} must be a torch Dataset, got {found!r}")


def _check_reward(function: DictConfig, sources: set[str]) -> None:
    if function.path:
        if not callable(found := _loaded("reward.custom_reward_function", function.path, function.name)):
            raise ValueError(f"reward.custom_reward_function.name={function.name} must be callable, got {found!r}")
        unknown = sorted(each for each in sources if verifier_of(each) is None) if found is compute_score else []
        if unknown:
            raise ValueError(f"poise has no verifier for the data_source {unknown[0]!r}: {known_sources()}")
        return
    for source in sorted(sources):
        if not _verl_rewards(source):
            raise ValueError(
                f"verl has no reward for the data_source {source!r}: reward.custom_reward_function.path="
                "pkg://poise.engines.verl.rewards grades by poise's verifiers, or names a file of your own"
            )


def _verl_rewards(source: str) -> bool:
    """Whether verl's own function knows a data source; any other complaint of it is about the empty answer."""
    try:
        cast("Callable[..., Any]", default_compute_score)(source, "", "")
    except NotImplementedError:
        return False
    except Exception:
        return True
    return True
