"""What cannot work is refused in one sentence, before Ray is started; what can is composed and passes verl's checks."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from configuration import SMALL, composed
from omegaconf import OmegaConf

from poise.engines.verl import main
from poise.engines.verl.settings import LOSS_NORMALIZATION, PoiseSettings, checked_settings, sources_of_bias

ROOT = Path(main.__file__).parents[4]
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
RUNS = [name for name in RECIPES if name not in ("math_evaluation", "dapo_math_paper")]

REFUSALS = {
    "poise.preset=poize": "presets are poise, .*; got 'poize'",
    "poise.preset=same-rollout": "preset 'same-rollout' is a biased control",
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
    "actor_rollout_ref.rollout.n=1": "rollout.n must be at least 2, got 1 .preset 'prompt-only'",
    "critic.enable=true": "critic.enable must not be true",
    "trainer.use_v1=false": "trainer.use_v1 must be true",
    "trainer.v1.trainer_mode=separate_async": "modes sync, colocate_async; got .*'separate_async'",
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


def test_the_command_says_the_sentence_and_takes_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(main, "run_ppo", lambda *given, **named: pytest.fail("Ray was started"))
    monkeypatch.setattr(sys, "argv", ["poise-verl", *SMALL, "poise.preset=poize", f"hydra.run.dir={tmp_path}"])
    with pytest.raises(SystemExit, match=r"^poise-verl: presets are"):
        main.main()


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
    assert config.actor_rollout_ref.rollout.val_kwargs.n == 32
    assert len(config.data.val_files) == 8
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
