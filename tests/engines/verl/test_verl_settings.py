"""What cannot work is refused in one sentence, before Ray is started; what can is composed and passes verl's checks."""

import json
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from configuration import SMALL, composed
from datasets import Dataset
from omegaconf import OmegaConf
from typer.testing import CliRunner

from poise.cli import app
from poise.doctor.verl_run import memory_finding
from poise.engines.verl import command as main
from poise.engines.verl.main import main as poise_verl
from poise.engines.verl.settings import (
    LOSS_NORMALIZATION,
    PoiseSettings,
    checked_settings,
    loss_normalization,
    sources_of_bias,
)

ROOT = Path(main.__file__).parents[4]
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
RUNS = [name for name in RECIPES if name not in ("math_evaluation", "dapo_math_paper")]

REFUSALS = {
    "poise.preset=poize": "presets are poise, .*; got 'poize'",
    "poise.preset=same-rollout": "the baseline 'same-rollout' is a rollout's own value: its gradient is biased",
    "+poise.preset_options.scalars=[answer_share]": "workers read the scalars .*; got 'answer_share'",
    "+poise.preset_options.window=8": "has the fields .*; got 'window'",
    "+poise.layer=3": "the poise block has the options .*; got 'layer'",
    "poise.pool_tokens=0": "pooled over 1 token or more, got poise.pool_tokens=0",
    "poise.pool_tokens=null": "pooled over 1 token or more, got poise.pool_tokens=None",
    "poise.layers=[-1]": "a list of decoder layers, counted from 0; got .-1",
    "poise.layers=19": "a list of decoder layers, counted from 0; got 19",
    "poise.layers=[]": "a list of decoder layers, counted from 0; got ..",
    "algorithm.adv_estimator=grpo": "algorithm.adv_estimator must be 'poise', got 'grpo'",
    "algorithm.rollout_correction.bypass_mode=true": "bypass_mode=True skips that pass",
    "actor_rollout_ref.rollout.n=1": "rollout.n must be at least 2, got 1 .presets that need no .*poise-single",
    "critic.enable=true": "critic.enable must not be true",
    "trainer.use_v1=false": "trainer.use_v1 must be true",
    "trainer.v1.trainer_mode=later": "modes sync, colocate_async, separate_async; got .*'later'",
    "poise.update_share=0": "update_share must lie above 0 and be at most 1, got 0",
    "poise.update_share=2": "update_share must lie above 0 and be at most 1, got 2",
    "actor_rollout_ref.actor.strategy=megatron": "got .*strategy='megatron', an engine without poise's plug-in",
    "actor_rollout_ref.actor.loss_agg_mode=median": "knows the loss_agg_mode .*; got 'median'",
}


@pytest.mark.parametrize("override", REFUSALS)
def test_what_cannot_work_is_refused_in_a_sentence(override):
    with pytest.raises(ValueError, match=REFUSALS[override]) as refusal:
        main.check(composed(*SMALL, override))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("preset", ["rloo", "group-mean", "paper", "shrunk-rloo", "released-olmo3-7b", "poise-value"])
def test_lone_rollouts_are_refused_where_siblings_are_evidence(preset):
    with pytest.raises(ValueError, match="reads a baseline from siblings"):
        checked_settings(composed(*SMALL, f"poise.preset={preset}", "actor_rollout_ref.rollout.n=1"))


@pytest.mark.parametrize("preset", ["prompt-only", "none"])
def test_lone_rollouts_are_served_where_they_are_not(preset):
    settings = checked_settings(composed(*SMALL, f"poise.preset={preset}", "actor_rollout_ref.rollout.n=1"))
    assert settings.preset == preset


@pytest.fixture(scope="module")
def whole(policy_folder, tmp_path_factory):
    """Options of a run that could begin, and files that spoil one, by name."""
    folder = tmp_path_factory.mktemp("machine")
    row = {
        "data_source": "math__dapo",
        "prompt": [{"role": "user", "content": "1+1="}],
        "reward_model": {"style": "rule", "ground_truth": "2"},
    }
    Dataset.from_list([row] * 8).to_parquet(folder / "data.parquet")
    Dataset.from_list([row] * 2).to_parquet(folder / "short.parquet")
    Dataset.from_list([{"question": "1+1="}] * 8).to_parquet(folder / "bare.parquet")
    Dataset.from_list([row | {"data_source": "riddles"}] * 8).to_parquet(folder / "riddles.parquet")
    (folder / "broken.parquet").write_text("no parquet")
    (folder / "data.csv").write_text("prompt")
    (folder / "reward.py").write_text("def compute_score(**given):\n    return 0.0\n\nnumber = 1\n")
    (folder / "broken.py").write_text("import nothing_of_the_kind\n")
    (folder / "empty").mkdir()
    config = json.loads((policy_folder / "config.json").read_text())
    (folder / "dumb").mkdir()
    (folder / "dumb" / "config.json").write_text(json.dumps(config))
    options = [
        *(option for option in SMALL if not option.startswith("actor_rollout_ref.model.path")),
        f"actor_rollout_ref.model.path={policy_folder}",
        f"data.train_files={folder}/data.parquet",
        f"data.val_files={folder}/data.parquet",
        "reward.custom_reward_function.path=pkg://poise.engines.verl.rewards",
        f"hydra.run.dir={folder}/run",
    ]
    return options, folder


BAD_INPUTS = {
    "colour=red": "Could not override 'colour'",
    "+recipes=nothing": "there is no recipe 'nothing'",
    "data.seed=${oc.env:NO_SUCH_VARIABLE}": "Environment variable 'NO_SUCH_VARIABLE' not found",
    "poise.preset=poize": "presets are .*; got 'poize'",
    "data.train_files=gone.parquet": "data.train_files names gone.parquet, and there is no such file",
    "data.val_files=[gone.parquet]": "data.val_files names gone.parquet, and there is no such file",
    "data.train_files=null": "data.train_files needs a file with verl's columns",
    "data.train_files=HERE/broken.parquet": "broken.parquet is not parquet",
    "data.train_files=HERE/data.csv": "verl reads .parquet, .json and .jsonl files",
    "data.train_files=HERE/bare.parquet": "lacks the columns data_source, prompt, reward_model: it has question",
    "data.train_files=HERE/short.parquet": "data.train_batch_size=8 prompts, and data.train_files have 2",
    "poise.domain_column=subject": "lacks the column subject .poise.domain_column.",
    "actor_rollout_ref.model.path=/nowhere": "model.path=/nowhere is no folder",
    "actor_rollout_ref.model.path=HERE/empty": "is no model: the folder holds no config.json",
    "actor_rollout_ref.model.path=HERE/dumb": "has no tokenizer",
    "poise.layers=[99]": "layer 99 is out of range: this model has layers 0 to 2",
    "actor_rollout_ref.rollout.name=vllm": "needs the package vllm, which is not installed",
    "actor_rollout_ref.rollout.name=dice": "rollout.name must be one of .*; got 'dice'",
    "trainer.logger=[console,wandb]": "names wandb, and there is no key for it: run `wandb login`",
    "trainer.logger=[paper]": "trainer.logger may name .*; got 'paper'",
    "trainer.resume_mode=resume_path": "needs a folder global_step_N",
    "reward.custom_reward_function.path=gone.py": "path=gone.py is no file",
    "reward.custom_reward_function.path=HERE/broken.py": "cannot be imported",
    "reward.custom_reward_function.path=HERE/reward.py reward.custom_reward_function.name=other": (
        "name=other is not defined in"
    ),
    "reward.custom_reward_function.path=HERE/reward.py reward.custom_reward_function.name=number": "must be callable",
    "reward.custom_reward_function.path=null data.train_files=HERE/riddles.parquet": (
        "no reward for the data_source 'riddles'"
    ),
    "data.train_files=HERE/riddles.parquet": "poise has no verifier for the data_source 'riddles'",
    "data.custom_cls.path=HERE/reward.py data.custom_cls.name=compute_score": "must be a torch Dataset",
    "data.custom_cls.path=gone.py": "data.custom_cls.path=gone.py is no file",
}


@pytest.mark.parametrize("bad", BAD_INPUTS)
def test_bad_input_is_one_sentence_and_exit_code_2(bad, whole, monkeypatch, capsys):
    options, folder = whole
    monkeypatch.setattr(main, "run_ppo", lambda *given, **named: pytest.fail("Ray was started"))
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("NETRC", str(folder / "nothing"))
    monkeypatch.setattr(sys, "argv", ["poise-verl", *options, *bad.replace("HERE", str(folder)).split()])
    with pytest.raises(SystemExit) as left:
        poise_verl()
    assert left.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("/", "  "))]
    assert len(said) == 1
    assert re.match(f"poise-verl: .*{BAD_INPUTS[bad]}", said[0]), said


def test_a_good_run_reaches_ray_with_its_reward_guarded(whole, monkeypatch):
    seen = []
    monkeypatch.setattr(main, "run_ppo", lambda config, **named: seen.append(config))
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "a key")
    monkeypatch.setattr(sys, "argv", ["poise-verl", *whole[0]])
    poise_verl()
    function = seen[0].reward.custom_reward_function
    assert list(function.reward_kwargs.poise_function) == ["pkg://poise.engines.verl.rewards", "compute_score"]
    assert function.name == "guarded_score"
    assert list(seen[0].trainer.logger) == ["console", "wandb"]


def test_the_doctor_examines_a_run_on_verl(whole, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    options, _ = whole
    examined = CliRunner().invoke(app, ["doctor", *options, "actor_rollout_ref.rollout.top_p=0.9"])
    assert examined.exit_code == 0, examined.output
    found = dict(line.split()[:2] for line in examined.output.splitlines() if line.strip())
    expected = dict.fromkeys(("options", "machine", "versions", "gradient", "temperature", "memory", "disk"), "ok")
    assert found | expected | {"sampling": "warn"} == found


@pytest.mark.parametrize(
    ("actor", "card", "offloaded", "level"), [(29, 80, False, "fail"), (29, 80, True, "ok"), (8, 80, False, "ok")]
)
def test_the_doctor_counts_actor_and_sampler_together(actor, card, offloaded, level):
    assert memory_finding(actor * 2.0**30, 0.7, card=card * 2.0**30, offloaded=offloaded).level == level


def test_help_is_poises_own_and_short(capsys):
    poise_verl(["--help"])
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) <= 20
    assert all(f"poise.{field.name}" in shown for field in fields(PoiseSettings))
    assert "--cfg job" in shown


WITHOUT_VERL = """
import sys
from poise.engines.verl.main import main

class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name == "verl":
            raise ModuleNotFoundError("No module named 'verl'", name="verl")

sys.meta_path.insert(0, Nowhere())
main()
"""


def test_without_verl_there_is_a_sentence():
    def ran(*line):
        return subprocess.run([sys.executable, "-c", WITHOUT_VERL, *line], capture_output=True, text=True)

    refused, helped = ran(), ran("-h")
    assert refused.returncode == 2
    assert refused.stderr == "poise-verl needs verl, which is not installed: pip install 'poise-rlvr[verl]'\n"
    assert helped.returncode == 0
    assert helped.stdout.startswith("poise-verl OPTION=VALUE")


def test_defaults_pass_verls_checks_and_are_unbiased():
    config = composed(*SMALL)
    main.check(config)
    settings = checked_settings(config)
    assert settings == PoiseSettings()
    assert sources_of_bias(config, settings) == []


def test_every_source_of_bias_is_said():
    config = composed(
        *SMALL,
        "poise.preset=group-mean",
        "actor_rollout_ref.actor.loss_agg_mode=token-mean",
        "algorithm.filter_groups.enable=true",
    )
    assert [source.split()[0] for source in sources_of_bias(config, checked_settings(config))] == [
        "the",
        "loss_agg_mode",
        "algorithm.filter_groups",
    ]


@pytest.mark.parametrize("loss", ["sapo", "geo_mean"])
def test_losses_that_divide_by_the_length_are_known_whatever_the_mode_says(loss):
    config = composed(*SMALL, f"actor_rollout_ref.actor.policy_loss.loss_mode={loss}")
    settings = checked_settings(config)
    assert loss_normalization(config) == "sequence"
    said = f"the loss '{loss}', whatever loss_agg_mode says, divides every rollout by its own length"
    assert sources_of_bias(config, settings)[0].startswith(said)
    with pytest.raises(ValueError, match="unbiased only under a loss with a constant normaliser"):
        checked_settings(composed(*SMALL, "poise.update_share=0.5", "actor_rollout_ref.actor.loss_agg_mode=token-mean"))


def test_the_block_has_the_options_of_the_settings():
    block = yaml.safe_load((Path(main.__file__).parent / "config/poise_ppo.yaml").read_text())["poise"]
    assert PoiseSettings(**block) == PoiseSettings()


def test_every_way_of_averaging_of_verl_is_known():
    from verl.workers.config import FSDPActorConfig

    for mode in LOSS_NORMALIZATION:
        FSDPActorConfig(strategy="fsdp2", rollout_n=2, use_dynamic_bsz=True, loss_agg_mode=mode)


@pytest.mark.parametrize("page", ["README.md", "docs/engines/verl.md"])
def test_the_command_on_the_page_passes_poises_and_verls_checks(page):
    command = re.search(r"```sh\n(poise-verl .*?)```", (ROOT / page).read_text(), flags=re.DOTALL).group(1)
    main.check(composed(*shlex.split(command.replace("\\\n", " "))[1:], "trainer.device=cpu"))


def recipe(name, monkeypatch):
    monkeypatch.setenv("GURU_REWARD", "guru_reward.py")
    return composed(f"hydra.searchpath=[pkg://verl.trainer.config,file://{ROOT}]", f"+recipes={name}")


@pytest.mark.parametrize("name", RUNS)
def test_recipes_pass_poises_and_verls_checks(name, monkeypatch):
    config = recipe(name, monkeypatch)
    config.trainer.device = "cpu"
    main.check(config)
    OmegaConf.resolve(config)
    files, samples = (12, 1) if name.startswith("guru") else (8, 32)
    assert len(config.data.val_files) == files
    assert config.actor_rollout_ref.rollout.val_kwargs.n == samples
    assert config.data.seed == 42
    assert config.actor_rollout_ref.rollout.n == 2
    published = name.endswith(("_paper", "_released"))
    assert (config.poise.preset == "poise") is not published
    assert (checked_settings(config).layers == [19]) is published


@pytest.mark.parametrize("name", RECIPES)
def test_every_value_of_the_papers_recipes_has_its_source(name):
    if "paper" not in name and name != "math_evaluation":
        return
    for line in (ROOT / "recipes" / f"{name}.yaml").read_text().splitlines():
        number_or_word = (
            line.split(":", 1)[1].strip() if ":" in line and not line.lstrip().startswith(("#", "-")) else ""
        )
        own = ("nnodes", "project_name", "experiment_name", "loss_scale_factor", "val_files")
        if number_or_word and line.split(":")[0].strip() not in own:
            assert "#" in line, f"{name}: {line}"
