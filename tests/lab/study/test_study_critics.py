"""A critic of a study is fitted across rollouts, told nothing of held-out rewards, and kept."""

import copy
import dataclasses
import re

import pytest
import torch
from study_world import made_up_rollouts

from poise.lab.study import critics
from poise.lab.study.comparisons import best_in_hindsight
from poise.lab.study.critics import CriticFitting, fit_critic, fit_critics
from poise.lab.study.judging import absolute_error, judged

NAMES = {True: "trajectory critic", False: "prompt-only critic"}
FITTING = CriticFitting(epochs=6, learning_rates=(1e-3,), batch_size=8, held_back=0.2)


def spelled_rollouts(num_prompts, *, draws, featured, seed, name=""):
    """Prompts whose value is 1 or 0; the prompt does not tell which, every completion does."""
    rollouts, values = made_up_rollouts(num_prompts, draws=draws, featured=featured, seed=seed, name=name)
    right = values > 0.5
    rollouts.rewards[:] = right[:, None].double()
    for prompt, good in enumerate(right.tolist()):
        rollouts.completion_ids[prompt][:] = [[7 if good else 8, 20 + draw] for draw in range(featured)]
    return rollouts, right.double()


@pytest.fixture
def world():
    training, _ = spelled_rollouts(60, draws=4, featured=2, seed=0)
    held_out, values = spelled_rollouts(24, draws=5, featured=2, seed=1, name="held-out ")
    return training, held_out, values


def error(estimates, values):
    return float(((estimates.values - values[:, None]) ** 2).mean())


def test_a_critic_of_the_trajectory_knows_what_one_of_the_prompt_cannot(tiny_model, world):
    training, held_out, values = world
    trajectory, prompt = (
        fit_critic(tiny_model, training, held_out, name=NAMES[reads], fitting=FITTING) for reads in (True, False)
    )
    assert error(trajectory, values) < 0.05
    assert error(prompt, values) > 0.2  # a quarter is knowing nothing
    assert prompt.values.std() < 1e-5  # all prompts are spelled alike


def test_a_row_is_fitted_to_its_siblings_reward_and_not_to_its_own(tiny_model, world):
    training, held_out, _ = world
    # Of each pair one is right and one is wrong, and each completion tells its own outcome.
    training.rewards[:, 0], training.rewards[:, 1] = 1.0, 0.0
    for completions in training.completion_ids:
        completions[0], completions[1] = [7, 20], [8, 20]
    estimates = fit_critic(tiny_model, training, held_out, name="trajectory critic", fitting=FITTING)
    told_right = torch.tensor([completions[0][0] == 7 for completions in held_out.completion_ids])
    assert estimates.values[told_right, 0].mean() < 0.2
    assert estimates.values[~told_right, 0].mean() > 0.8


@pytest.mark.parametrize("reads_completion", [True, False])
def test_held_out_rewards_reach_no_critic(tiny_model, world, reads_completion):
    training, held_out, _ = world
    fitting = CriticFitting(epochs=1, learning_rates=(1e-3,))
    other = copy.deepcopy(held_out)
    other.rewards[:] = 1 - other.rewards
    first, second = (
        fit_critic(tiny_model, training, each, name=NAMES[reads_completion], fitting=fitting).values
        for each in (held_out, other)
    )
    assert torch.equal(first, second)


def test_the_learning_rate_is_chosen_on_held_back_training_prompts(tiny_model, world):
    training, held_out, values = world
    lame, able = 1e-9, 1e-3
    chosen = fit_critic(
        tiny_model,
        training,
        held_out,
        name="trajectory critic",
        fitting=CriticFitting(epochs=6, learning_rates=(lame, able), batch_size=8, held_back=0.2),
    )
    assert error(chosen, values) < 0.05
    assert re.match(
        r"learning rate 0\.001 of 1e-09, 0\.001, [1-6] of at most 6 epochs, squared error 0\.\d+ on held", chosen.chosen
    )


def test_in_hindsight_the_epoch_that_judging_rollouts_like_best_is_taken(tiny_model, world):
    training, held_out, _ = world
    lame, able = 1e-9, 1e-3
    fitting = CriticFitting(epochs=3, learning_rates=(able, lame), batch_size=8, held_back=0.2, hindsight=True)
    critic = fit_critic(tiny_model, training, held_out, name="trajectory critic", fitting=fitting)
    assert critic.each_epoch.shape[1:] == critic.values.shape == (24, 2)
    assert 4 <= len(critic.each_epoch) <= 6  # of both rates; the lame one may stop early
    assert any(torch.equal(said, critic.values) for said in critic.each_epoch)
    errors = [absolute_error(judged(said, held_out.rewards)) for said in critic.each_epoch]
    best = best_in_hindsight(critic, held_out.rewards)
    assert absolute_error(judged(best.values, held_out.rewards)) == min(errors) < max(errors)
    # Judged by rewards turned around, another epoch is the best.
    turned = 1 - held_out.rewards
    assert not torch.equal(best_in_hindsight(critic, turned).values, best.values)
    with pytest.raises(ValueError, match="needs what each epoch said, got none"):
        best_in_hindsight(dataclasses.replace(critic, each_epoch=None), turned)


def test_taking_down_each_epoch_leaves_the_fit_as_it_is(tiny_model, world):
    training, held_out, _ = world
    plain, watched = (
        fit_critic(
            tiny_model,
            training,
            held_out,
            name="prompt-only critic",
            fitting=dataclasses.replace(FITTING, hindsight=each),
        )
        for each in (False, True)
    )
    assert torch.equal(plain.values, watched.values)
    assert plain.each_epoch is None


def test_what_a_critic_said_is_kept_and_another_one_is_fitted_for_other_settings(
    tmp_path, tiny_model, world, monkeypatch
):
    training, held_out, _ = world
    fitting = CriticFitting(epochs=1, learning_rates=(1e-3,))
    first = fit_critics(tmp_path / "critics", tiny_model, training, held_out, fitting=fitting)

    def refuse(*args, **options):
        raise AssertionError("it was fitted again")

    monkeypatch.setattr(critics, "fit_critic", refuse)
    again = fit_critics(tmp_path / "critics", tiny_model, training, held_out, fitting=fitting)
    assert list(first) == list(again) == ["prompt-only critic", "trajectory critic"]
    for name, each in first.items():
        assert torch.equal(each.values, again[name].values)
        assert (each.seconds, each.extra_bytes) == (again[name].seconds, again[name].extra_bytes)
        assert each.chosen == again[name].chosen != ""
    with pytest.raises(AssertionError, match="fitted again"):
        fit_critics(tmp_path / "critics", tiny_model, training, held_out, fitting=CriticFitting(2, (1e-3,)))
    looking_back = dataclasses.replace(fitting, hindsight=True)
    with pytest.raises(AssertionError, match="fitted again"):
        fit_critics(tmp_path / "critics", tiny_model, training, held_out, fitting=looking_back)
    monkeypatch.undo()
    fitted = fit_critics(tmp_path / "critics", tiny_model, training, held_out, fitting=looking_back)
    monkeypatch.setattr(critics, "fit_critic", refuse)
    for wanted in (looking_back, fitting):
        again = fit_critics(tmp_path / "critics", tiny_model, training, held_out, fitting=wanted)
        for name, each in fitted.items():
            assert torch.equal(each.each_epoch, again[name].each_epoch)
