"""The online object as its user meets it: order, state, bad input, odd batches; that knowing nothing costs nothing."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import poise
from oracles import drawn_rollouts, sibling_mean, together
from poise.features.rollout_features import Features
from poise.online import OnlineBaseline
from poise.paper.published import EarlierStepsRecipe
from poise.presets import PRESETS
from poise.probe.learned import LeaveOnePromptOutRecipe

LEARNED = [name for name, preset in PRESETS.items() if isinstance(preset.recipe, LeaveOnePromptOutRecipe)]
PUBLISHED = [name for name, preset in PRESETS.items() if isinstance(preset.recipe, EarlierStepsRecipe)]


def small(name, **changes):
    """The preset with few candidates, sizes that fit small batches, and short first steps."""
    if name in LEARNED:
        changes = {"penalties": (3.0, 300.0), "components": (4,), "projection_size": 8} | changes
    if name in PUBLISHED:
        changes = {"rloo_steps": 1, "window_rows": 100} | changes
    if name.startswith("released"):
        changes = {"prompt_components": 3, "completion_components": 4} | changes
    return poise.preset(name, **changes)


def batch(seed, *, sizes=(2,) * 16):
    """Prompts of two domains."""
    return together(
        drawn_rollouts(sizes, seed=seed, domain="math"),
        drawn_rollouts(sizes[: len(sizes) // 2], seed=100 + seed, domain="code"),
    )


def after(preset, *rollouts):
    """An online baseline that has made these steps."""
    baseline = OnlineBaseline(preset)
    for each in rollouts:
        each.given_to(baseline)
    return baseline


# The order of a step, and reductions to what is known


@pytest.mark.parametrize("name", PRESETS)
def test_advantages_are_rewards_minus_baselines_in_the_order_given(name):
    baseline = OnlineBaseline(small(name))
    for seed in range(3):
        rollouts = batch(seed)
        step = rollouts.given_to(baseline)
        assert step.baselines.dtype == step.advantages.dtype == torch.float64
        assert torch.equal(step.advantages, rollouts.rewards - step.baselines)


def test_rloo_and_none_and_group_mean_are_what_their_names_say():
    rollouts = batch(0, sizes=(2, 3, 4, 2))
    rloo = torch.tensor(sibling_mean(rollouts.rewards.tolist(), rollouts.prompts)).double()
    assert_close(rollouts.given_to(OnlineBaseline(poise.preset("rloo"))).baselines, rloo)
    assert not rollouts.given_to(OnlineBaseline(poise.preset("none"))).baselines.any()
    sizes = torch.tensor([float(rollouts.prompts.count(prompt)) for prompt in rollouts.prompts]).double()
    mean = (rloo * (sizes - 1) + rollouts.rewards) / sizes
    assert_close(rollouts.given_to(OnlineBaseline(poise.preset("group-mean"))).baselines, mean)


@pytest.mark.parametrize("earlier", [0, 2])
def test_a_constant_and_next_to_no_penalty_give_the_mean_of_all_other_prompts(earlier):
    preset = poise.preset("poise-value", evidence=("constant",), penalties=(1e-9,))
    steps = [replace(batch(seed), rewards=batch(seed).rewards + 3) for seed in range(earlier + 1)]
    step = steps[-1].given_to(after(preset, *steps[:-1]))
    past = torch.cat([torch.zeros(0).double(), *(each.rewards for each in steps[:-1])])
    for prompt, value in zip(steps[-1].prompts, step.baselines.tolist(), strict=True):
        others = torch.tensor([each != prompt for each in steps[-1].prompts])
        assert value == pytest.approx(float(torch.cat([past, steps[-1].rewards[others]]).mean()), abs=1e-6)


def test_the_weighted_constant_is_the_weighted_mean_of_all_other_prompts():
    preset = poise.preset("poise", evidence=("constant",), penalties=(1e-9,))
    rollouts = batch(0)
    rollouts = replace(rollouts, rewards=rollouts.rewards + 3)
    for prompt, value in zip(
        rollouts.prompts, rollouts.given_to(OnlineBaseline(preset)).baselines.tolist(), strict=True
    ):
        others = torch.tensor([each != prompt for each in rollouts.prompts])
        w, r = rollouts.weights[others], rollouts.rewards[others]
        assert value == pytest.approx(float((w * r).sum() / w.sum()), abs=1e-6)


def test_values_of_poise_are_the_baselines_of_poise_value():
    weighted, unweighted = OnlineBaseline(small("poise")), OnlineBaseline(small("poise-value"))
    for seed in range(3):
        steps = [batch(seed).given_to(baseline) for baseline in (weighted, unweighted)]
        assert torch.equal(steps[0].values, steps[1].baselines)
        assert torch.equal(steps[1].values, steps[1].baselines)
    assert (steps[0].baselines - steps[0].values).abs().max() > 0.01


def test_without_weights_poise_is_poise_value():
    weighted, unweighted = OnlineBaseline(small("poise")), OnlineBaseline(small("poise-value"))
    for seed in range(2):
        rollouts = replace(batch(seed), weights=None)
        assert torch.equal(rollouts.given_to(weighted).baselines, rollouts.given_to(unweighted).baselines)


@pytest.mark.parametrize("own", [0.5, 7.0, -7.0])
def test_a_baseline_stays_within_the_rewards_of_the_other_prompts(own):
    # Siblings agree everywhere, so the sibling's 1.0 would be believed; but no other prompt earned more than .6.
    preset = poise.preset("poise-value", evidence=("constant", "sibling_reward"), penalties=(1e-3,))
    levels = [0.4, 0.6, 0.45, 0.55, 0.6, 0.4, 0.5, 0.45]
    rewards = [own, 1.0] + [level for level in levels for _ in range(2)]
    step = OnlineBaseline(preset).step(None, rewards, prompts=[k // 2 for k in range(18)])
    assert 0.6 - 1e-9 < float(step.baselines[0]) <= 0.6
    assert step.in_charge == {"": "sibling_reward (penalty 0.001, all rows)"}


def test_a_prompt_that_comes_back_is_remembered():
    preset = small("prompt-only", evidence=("constant", "history"))
    rates = torch.rand(60, generator=torch.Generator().manual_seed(0)).round().double()
    row = torch.arange(60).repeat_interleave(2)
    baseline = OnlineBaseline(preset)
    for _ in range(4):
        step = baseline.step(None, rates[row], prompts=row.tolist())
    assert (step.baselines - rates[row]).abs().max() < 0.2


def test_metrics_are_plain_numbers_with_one_prefix_and_the_evidence_in_charge_is_named():
    step = batch(1).given_to(after(small("poise"), batch(0)))
    assert all(key.startswith("poise/") and isinstance(value, float) for key, value in step.metrics.items())
    assert step.metrics["poise/baseline_mean"] == pytest.approx(float(step.baselines.mean()))
    assert set(step.in_charge) == {"math", "code"}


def test_the_weighted_risk_is_a_share_of_the_risk_without_a_baseline():
    rollouts = batch(0)
    step = rollouts.given_to(OnlineBaseline(small("poise")))
    risks = [(rollouts.weights * (rollouts.rewards - b) ** 2).sum() for b in (step.baselines, 0)]
    assert step.metrics["poise/weighted_risk"] == pytest.approx(float(risks[0] / risks[1]))
    assert rollouts.given_to(OnlineBaseline(poise.preset("none"))).metrics["poise/weighted_risk"] == pytest.approx(1)


# State


@pytest.mark.parametrize("name", PRESETS)
def test_a_run_that_was_saved_and_restored_equals_one_that_was_not(name, tmp_path):
    preset = small(name)
    uninterrupted = after(preset, batch(0), batch(1))
    uninterrupted.save(tmp_path)
    restored = OnlineBaseline(preset)
    restored.restore(tmp_path)
    for seed in (2, 3):
        one, other = (batch(seed).given_to(baseline) for baseline in (uninterrupted, restored))
        assert torch.equal(one.baselines, other.baselines)
        assert torch.equal(one.values.nan_to_num(9), other.values.nan_to_num(9))
        assert one.metrics == pytest.approx(other.metrics, rel=0, abs=0, nan_ok=True)
        assert one.in_charge == other.in_charge


@pytest.mark.parametrize(
    "changes",
    [
        {"probe": "logistic", "penalty": 1.0},
        {"probe": "mlp", "penalty": 1.0},
        {"members": [["ridge", 1.0], ["logistic", 1.0]], "combination": "stacked", "own_domain": True},
        {"target": "group", "scalars": ["answer_mean_entropy"]},
    ],
    ids=str,
)
def test_a_run_with_options_of_the_release_goes_on_from_its_saved_state_alone(changes, tmp_path):
    preset = small("paper", **changes)
    uninterrupted = after(preset, batch(0), batch(1))
    uninterrupted.save(tmp_path)
    restored = OnlineBaseline(preset)
    restored.restore(tmp_path)
    for seed in (2, 3):
        one, other = (batch(seed).given_to(baseline).baselines for baseline in (uninterrupted, restored))
        assert torch.equal(one, other)


def with_luck(rollouts, luck):
    return replace(rollouts.features, scalars={"own:luck": luck})


def test_scalars_by_name_are_evidence_of_the_siblings():
    # Luck tells the reward; nothing else does. A preset that reads it from the sibling knows what the others do not.
    def error(**changes):
        baseline, total = OnlineBaseline(small("poise-value", **changes)), 0.0
        for seed in range(4):
            rollouts = drawn_rollouts((2,) * 100, seed=seed, knowable=False)
            features = with_luck(rollouts, rollouts.values.float())
            step = baseline.step(features, rollouts.rewards, prompts=rollouts.prompts)
            total = float((step.values - rollouts.values).square().mean())
        return total

    assert error(scalars=("own:luck",)) < 0.2 * error()


@pytest.mark.parametrize("name", ["poise", "paper"])
def test_a_scalar_that_the_features_lack_is_named(name):
    baseline = OnlineBaseline(small(name, scalars=("own:luck", "answer_length")))
    rollouts = batch(0)
    features = with_luck(rollouts, rollouts.rewards.float())
    with pytest.raises(ValueError, match=r"the features need the scalar 'answer_length', got .*, own:luck"):
        baseline.step(features, rollouts.rewards, prompts=rollouts.prompts)


def test_only_scalars_that_are_read_must_be_finite():
    rollouts = batch(0)
    features = with_luck(rollouts, torch.full((48,), torch.nan))
    OnlineBaseline(small("paper")).step(features, rollouts.rewards, prompts=rollouts.prompts)
    reading = OnlineBaseline(small("paper", scalars=("own:luck",)))
    with pytest.raises(ValueError, match="the own:luck features of 48 of 48 rollouts are not"):
        reading.step(features, rollouts.rewards, prompts=rollouts.prompts)


@pytest.mark.parametrize("name", PRESETS)
def test_a_state_is_not_touched_by_later_steps(name):
    baseline = after(small(name), batch(0), batch(1))
    state = baseline.state_dict()
    expected = batch(2).given_to(baseline).baselines
    restored = OnlineBaseline(small(name))
    restored.load_state_dict(state)
    assert torch.equal(batch(2).given_to(restored).baselines, expected)


@pytest.mark.parametrize("name", PRESETS)
def test_a_fresh_baseline_can_be_saved_and_restored(name, tmp_path):
    OnlineBaseline(small(name)).save(tmp_path)
    restored = OnlineBaseline(small(name))
    restored.restore(tmp_path)
    assert torch.equal(batch(0).given_to(restored).baselines, batch(0).given_to(OnlineBaseline(small(name))).baselines)


def test_a_saved_baseline_is_two_files_without_pickle(tmp_path):
    after(small("poise"), batch(0)).save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["poise.json", "poise.safetensors"]


@pytest.mark.parametrize(
    ("theirs", "mine", "sentence"),
    [
        (small("poise"), small("poise-value"), "this baseline has preset 'poise-value', the state .* 'poise'"),
        (small("poise"), small("poise", window_rows=7), "this baseline has window_rows 7, the state .* 4096"),
        (small("paper"), small("paper", penalty=2.0), "this baseline has penalty 2.0, the state was made with 0.01"),
    ],
)
def test_the_state_of_another_baseline_is_refused(theirs, mine, sentence):
    with pytest.raises(ValueError, match=sentence):
        OnlineBaseline(mine).load_state_dict(after(theirs, batch(0)).state_dict())


@pytest.mark.parametrize("version", [None, 0, 99])
def test_the_state_of_another_version_is_refused(version):
    state = OnlineBaseline(small("poise")).state_dict() | {"version": version}
    with pytest.raises(ValueError, match=f"a baseline's state must have version 1, got {version}"):
        OnlineBaseline(small("poise")).load_state_dict(state)


def test_a_folder_without_a_state_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        OnlineBaseline(small("poise")).restore(tmp_path)


# Bad input


def spoiled(part, value):
    features = batch(0).features
    changed = getattr(features, part).clone()
    changed[3, 1] = value
    return replace(features, **{part: changed})


def shorter(features):
    return Features(*(getattr(features, name)[:-1] for name in ("prompt", "completion", "entropies", "missing")))


BAD = {
    "prompts too few": ({"prompts": ["a"] * 47}, "prompts must have one row for each of the 48 rewards, got 47"),
    "domains too few": ({"domains": ["a"]}, "domains must have one row for each of the 48 rewards, got 1"),
    "weights too many": ({"weights": torch.ones(49)}, "weights must have one row for each of the 48 rewards, got 49"),
    "features too few": (
        {"features": shorter(batch(0).features)},
        "prompt must have one row for each of the 48 rewards, got 47",
    ),
    "rewards in a table": (
        {"rewards": torch.zeros(24, 2)},
        r"rewards must be one number a rollout, got a tensor of shape \(24, 2\)",
    ),
    "an infinite reward": (
        {"rewards": torch.tensor([torch.inf] + [0.0] * 47)},
        "rewards must be finite, or NaN where a rollout is not gradable; got an infinite one",
    ),
    "a negative weight": (
        {"weights": torch.tensor([-2.0] + [1.0] * 47)},
        r"weights must be finite and not negative, got -2.0",
    ),
    "a weight that is NaN": (
        {"weights": torch.tensor([torch.nan] + [1.0] * 47)},
        r"weights must be finite and not negative, got nan",
    ),
    "an infinite weight": (
        {"weights": torch.tensor([torch.inf] + [1.0] * 47)},
        r"weights must be finite and not negative, got inf",
    ),
    "weights in a column": (
        {"weights": torch.ones(48, 1)},
        r"weights must be one number a rollout, got a tensor of shape \(48, 1\)",
    ),
    "no features": ({"features": None}, "this preset reads hidden states: features are needed, got None"),
    "prompt states NaN": (
        {"features": spoiled("prompt", torch.nan)},
        "features must be finite; the prompt features of 1 of 48 rollouts are not",
    ),
    "completion states infinite": (
        {"features": spoiled("completion", torch.inf)},
        "features must be finite; the completion features of 1 of 48 rollouts are not",
    ),
    "entropies NaN": (
        {"features": spoiled("entropies", torch.nan)},
        "features must be finite; the entropies features of 1 of 48 rollouts are not",
    ),
    "a prompt in two domains": (
        {"domains": ["math", "code"] * 24},
        "rollouts of one prompt must share its domain, got 'math' and 'code'",
    ),
}


def stepped(baseline, **changes):
    rollouts = batch(0)
    names = ("features", "rewards", "prompts", "domains", "weights")
    arguments = {name: getattr(rollouts, name) for name in names} | changes
    return baseline.step(arguments.pop("features"), arguments.pop("rewards"), **arguments)


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused_with_one_sentence_and_changes_nothing(what):
    changes, sentence = BAD[what]
    baseline = after(small("poise"), batch(5))
    before = baseline.state_dict()
    with pytest.raises(ValueError, match=sentence):
        stepped(baseline, **changes)
    for name, value in baseline.state_dict().items():
        same = torch.equal(value, before[name]) if isinstance(value, torch.Tensor) else value == before[name]
        assert same, name


@pytest.mark.parametrize("name", ["rloo", "paper", "released-qwen3-4b"])
def test_a_lone_rollout_is_refused_where_siblings_are_all_there_is(name):
    with pytest.raises(ValueError, match="it needs at least 2 rollouts per prompt, got 1"):
        drawn_rollouts((2, 1, 2), seed=0).given_to(OnlineBaseline(small(name)))


def test_sibling_evidence_alone_refuses_a_lone_rollout():
    preset = small("poise", evidence=("sibling_states", "sibling_reward"))
    with pytest.raises(ValueError, match="it needs at least 2 rollouts per prompt, got 1"):
        drawn_rollouts((2, 1, 2), seed=0).given_to(OnlineBaseline(preset))


@pytest.mark.parametrize("name", ["poise", "paper"])
def test_a_change_of_width_is_refused(name):
    baseline = after(small(name), batch(0))
    with pytest.raises(ValueError, match=r"features must be \[12, 12, 3\] wide as in earlier steps, got \[9, 9, 3\]"):
        drawn_rollouts((2, 2), seed=0, width=9).given_to(baseline)


# Invariances


def assert_permutes(name, steps):
    order = torch.randperm(48, generator=torch.Generator().manual_seed(1))
    plain = batch(9).given_to(after(small(name), *steps))
    permuted = batch(9)[order].given_to(after(small(name), *steps))
    assert_close(permuted.baselines, plain.baselines[order], atol=1e-9, rtol=0)
    assert_close(permuted.values, plain.values[order], atol=1e-9, rtol=0, equal_nan=True)


@pytest.mark.parametrize("name", PRESETS)
def test_permuting_rows_permutes_the_answers(name):
    assert_permutes(name, [batch(0), batch(1)])


@pytest.mark.parametrize("name", PRESETS)
def test_permuting_rows_of_the_first_step_permutes_the_answers(name):
    assert_permutes(name, [])


def test_the_unit_of_the_weights_does_not_matter():
    one, other = OnlineBaseline(small("poise")), OnlineBaseline(small("poise"))
    for seed in range(4):
        plain = batch(seed).given_to(one)
        scaled = batch(seed).given_to(other, weights=1000 * batch(seed).weights)
        assert_close(scaled.baselines, plain.baselines, atol=1e-9, rtol=0)
        assert scaled.in_charge == plain.in_charge


def ungradable(rollouts, rows):
    rewards = rollouts.rewards.clone()
    rewards[rows] = torch.nan
    return replace(rollouts, rewards=rewards)


@pytest.mark.parametrize("name", PRESETS)
def test_ungradable_rollouts_have_no_advantage_and_a_finite_baseline(name):
    baseline = OnlineBaseline(small(name))
    for seed in range(3):
        step = ungradable(batch(seed), [0, 4, 5, 40]).given_to(baseline)
        assert step.advantages[[0, 4, 5, 40]].tolist() == [0.0] * 4
        assert step.baselines.isfinite().all()
        assert step.metrics["poise/ungradable_share"] == pytest.approx(4 / 48)
        assert 0 < step.metrics["poise/weighted_risk"] < 10


@pytest.mark.parametrize("name", LEARNED)
def test_a_batch_with_ungradable_rows_equals_the_batch_without_them(name):
    # One rollout each of some groups of three, so that every prompt keeps siblings.
    dropped = [0, 5, 7, 30]
    kept = [row for row in range(72) if row not in dropped]
    whole, without = OnlineBaseline(small(name)), OnlineBaseline(small(name))
    for seed in range(3):
        rollouts = batch(seed, sizes=(3,) * 16)
        answers = ungradable(rollouts, dropped).given_to(whole).baselines[kept]
        assert_close(answers, rollouts[torch.tensor(kept)].given_to(without).baselines, atol=1e-9, rtol=0)


def test_prompts_that_are_ungradable_altogether_leave_the_rest_as_it_is():
    # With a window, so that no prompt's place in the batch matters.
    whole, without = after(small("poise"), batch(0)), after(small("poise"), batch(0))
    kept = torch.tensor([row for row in range(48) if row not in (0, 1, 20, 21)])
    answers = ungradable(batch(1), [0, 1, 20, 21]).given_to(whole).baselines[kept]
    assert_close(answers, batch(1)[kept].given_to(without).baselines, atol=1e-9, rtol=0)
    assert_close(batch(2).given_to(whole).baselines, batch(2).given_to(without).baselines, atol=1e-9, rtol=0)


# Odd batches


@pytest.mark.parametrize("name", PRESETS)
def test_domains_may_come_and_go(name):
    baseline = OnlineBaseline(small(name))
    for seed, domain in enumerate(["math", "code", "math", "prose", "code"]):
        step = drawn_rollouts((2,) * 12, seed=seed, domain=domain).given_to(baseline)
        assert step.baselines.isfinite().all()


@pytest.mark.parametrize("name", PRESETS)
def test_an_empty_batch_is_an_empty_step_that_changes_nothing(name):
    baseline = after(small(name), batch(0))
    step = drawn_rollouts((), seed=1).given_to(baseline)
    assert step.baselines.shape == step.advantages.shape == step.values.shape == (0,)
    expected = batch(2).given_to(after(small(name), batch(0))).baselines
    assert torch.equal(batch(2).given_to(baseline).baselines, expected)


@pytest.mark.parametrize("name", LEARNED)
def test_lone_rollouts_are_served_where_the_evidence_allows_it(name):
    baseline = OnlineBaseline(small(name))
    for seed in range(3):
        step = drawn_rollouts((1,) * 30, seed=seed).given_to(baseline)
        assert step.baselines.isfinite().all()
    assert step.baselines.abs().max() > 0.05


@st.composite
def odd_steps(draw):
    """Two or three steps of any sizes, some of them huge, constant or partly ungradable."""
    smallest = draw(st.sampled_from([1, 2]))
    sizes = st.lists(st.integers(smallest, 4), max_size=5)
    steps = []
    for seed in range(draw(st.integers(1, 3))):
        rollouts = drawn_rollouts(draw(sizes), seed=seed, width=5)
        kind = draw(st.sampled_from(["plain", "huge", "huge weights", "constant", "zero", "ungradable"]))
        parts = {name: getattr(rollouts, name) for name in ("prompt", "completion", "entropies", "weights")}
        if kind == "huge":
            rollouts = replace(rollouts, **{name: 1e4 * part for name, part in parts.items()})
        elif kind == "huge weights":
            rollouts = replace(rollouts, weights=rollouts.weights * 1e4 ** (rollouts.rewards - 0.5))
        elif kind in ("constant", "zero"):
            level = 0.0 if kind == "zero" else 1.0
            rollouts = replace(rollouts, **{name: torch.full_like(part, level) for name, part in parts.items()})
            rollouts = replace(rollouts, rewards=torch.full_like(rollouts.rewards, level))
        elif kind == "ungradable":
            nan = torch.tensor(draw(st.lists(st.booleans(), min_size=20, max_size=20)))[: len(rollouts.rewards)]
            rollouts = replace(rollouts, rewards=torch.where(nan, torch.nan, rollouts.rewards))
        steps.append(rollouts)
    return smallest, steps


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("name", PRESETS)
@settings(max_examples=8)
@given(drawn=odd_steps())
def test_whatever_comes_baselines_are_finite_and_within_the_range_of_rewards(name, scale, drawn):
    smallest, steps = drawn
    if smallest < 2 and PRESETS[name].needs_siblings:
        return
    baseline, seen = OnlineBaseline(small(name)), [0.0] + [1.0] * (name in PUBLISHED)  # published values: 0 to 1
    for rollouts in steps:
        scaled = scale * rollouts.rewards
        step = rollouts.given_to(baseline, rewards=scaled)
        assert step.baselines.isfinite().all()
        assert step.advantages.isfinite().all()
        if name in LEARNED:
            assert step.values.isfinite().all()
        seen += scaled[~scaled.isnan()].tolist()
        rounding = 1e-10 * scale
        assert ((step.baselines >= min(seen) - rounding) & (step.baselines <= max(seen) + rounding)).all()


@pytest.mark.parametrize("name", PRESETS)
def test_a_step_without_any_gradable_rollout_teaches_nothing(name):
    baseline = after(small(name), batch(0), batch(1))
    step = ungradable(batch(2), list(range(48))).given_to(baseline)
    assert step.baselines.isfinite().all()
    assert not step.advantages.any()
    expected = batch(3).given_to(after(small(name), batch(0), batch(1))).baselines
    assert_close(batch(3).given_to(baseline).baselines, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", PRESETS)
def test_rollouts_that_are_all_alike_are_served(name):
    alike = batch(0)
    alike = replace(
        alike, **{part: torch.ones_like(getattr(alike, part)) for part in ("prompt", "completion", "entropies")}
    )
    baseline = OnlineBaseline(small(name))
    for _ in range(3):
        assert alike.given_to(baseline).baselines.isfinite().all()


# Never worse


def squared_error(preset, draw, *, num_steps, judged):
    """Mean squared error to V, steps from `judged` on, by domain, of the preset's values and of leave-out means."""
    baseline, errors = OnlineBaseline(preset), {}
    past = torch.zeros(0).double()
    for seed in range(num_steps):
        rollouts = draw(seed)
        values = rollouts.given_to(baseline).values
        outside = torch.tensor([[a != b for b in rollouts.prompts] for a in rollouts.prompts]).double()
        total = past.sum() + outside @ rollouts.rewards
        means = total / (len(past) + outside.sum(dim=1))
        past = torch.cat([past, rollouts.rewards])
        if seed >= judged:
            for domain in set(rollouts.domains):
                inside = torch.tensor([d == domain for d in rollouts.domains])
                pair = [((b - rollouts.values)[inside] ** 2).mean() for b in (values, means)]
                errors.setdefault(domain, []).append(torch.stack(pair))
    return {domain: torch.stack(each).mean(dim=0).tolist() for domain, each in errors.items()}


def test_where_there_is_nothing_to_know_knowing_costs_next_to_nothing():
    def draw(seed):
        return drawn_rollouts((2,) * 256, seed=seed, rate=0.15)

    preset = poise.preset("poise-value", penalties=(3.0, 300.0), components=(8,))
    mine, leave_out_mean = squared_error(preset, draw, num_steps=8, judged=5)["all"]
    assert mine - leave_out_mean <= 0.0015


def test_where_there_is_something_to_know_it_is_known():
    def draw(seed):
        return drawn_rollouts((2,) * 64, seed=seed)

    preset = poise.preset("poise-value", penalties=(3.0, 30.0), components=(8,))
    mine, leave_out_mean = squared_error(preset, draw, num_steps=4, judged=1)["all"]
    shrunk, _ = squared_error(poise.preset("shrunk-rloo"), draw, num_steps=4, judged=1)["all"]
    assert mine < 0.5 * shrunk
    assert shrunk < leave_out_mean  # the control: pairs alone do tell something


def test_a_predictable_domain_is_not_held_back_by_one_that_is_not():
    def draw(seed):
        return together(
            drawn_rollouts((2,) * 64, seed=seed, domain="clear"),
            drawn_rollouts((2,) * 64, seed=1000 + seed, rate=0.15, domain="flat"),
        )

    preset = poise.preset("poise-value", penalties=(3.0, 300.0), components=(8,))
    errors = squared_error(preset, draw, num_steps=8, judged=5)
    alone = squared_error(preset, lambda seed: drawn_rollouts((2,) * 64, seed=seed), num_steps=8, judged=5)["all"]
    assert errors["clear"][0] < 1.25 * alone[0]
    assert errors["flat"][0] < 0.004


def test_prompts_may_be_a_tensor_or_an_array_of_ids():
    ids = [0, 0, 1, 1, 2, 2]
    rewards = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    made = [
        poise.OnlineBaseline(poise.preset("rloo")).step(None, rewards, prompts=prompts).baselines
        for prompts in (ids, torch.tensor(ids), torch.tensor(ids).numpy())
    ]
    assert made[0].abs().max() > 0
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


def test_features_may_come_and_go_where_they_are_not_read():
    baseline = poise.OnlineBaseline(poise.preset("rloo"))
    batch = drawn_rollouts([2, 2], seed=0)
    batch.given_to(baseline)
    step = baseline.step(None, [1.0, 0.0], prompts=["a", "a"])
    assert step.baselines.tolist() == [0.0, 1.0]


# Fits that cannot be solved


@pytest.mark.parametrize("earlier_steps", [0, 2])
def test_a_fit_that_cannot_be_solved_gives_way_to_the_leave_out_mean_and_is_counted(monkeypatch, earlier_steps):
    preset = small("poise")
    baseline = after(preset, *(batch(seed) for seed in range(earlier_steps)))
    rollouts = batch(9)

    def unsolvable(matrix):
        raise torch.linalg.LinAlgError("it does not converge")

    with monkeypatch.context() as patch:
        patch.setattr(torch.linalg, "eigh", unsolvable)
        step = rollouts.given_to(baseline)
    assert step.metrics["poise/inexact_share"] == 1
    past = [batch(seed) for seed in range(earlier_steps)]
    rewards, weights, prompts = (
        [float(entry) if name != "prompts" else entry for each in [*past, rollouts] for entry in getattr(each, name)]
        for name in ("rewards", "weights", "prompts")
    )
    first = len(rewards) - len(rollouts.rewards)
    shares = {}  # of the leave-out mean; what is missing to 1 is that of no baseline at all
    for row, prompt in enumerate(rollouts.prompts):
        others = [k for k in range(len(rewards)) if k < first or prompts[k] != prompt]
        mean = sum(weights[k] * rewards[k] for k in others) / sum(weights[k] for k in others)
        shares.setdefault(rollouts.domains[row], []).append(float(step.baselines[row]) / mean)
    for share in shares.values():
        assert share == pytest.approx([share[0]] * len(share))
        assert (0.5 if earlier_steps else 1 - 1e-9) < share[0] < 1 + 1e-9  # nothing is known at the first step
    # The step is learned from, and the next one is solved.
    following = batch(10).given_to(baseline)
    assert following.metrics["poise/inexact_share"] == 0
    assert following.baselines.isfinite().all()


@pytest.mark.parametrize("name", LEARNED)
def test_a_first_batch_of_one_prompt_has_its_siblings_mean_as_baseline(name):
    rollouts = drawn_rollouts([4], seed=0)
    step = rollouts.given_to(OnlineBaseline(small(name)))
    siblings = torch.tensor(sibling_mean(rollouts.rewards.tolist(), rollouts.prompts), dtype=torch.float64)
    assert torch.allclose(step.baselines, siblings, atol=1e-12)
