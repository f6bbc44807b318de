"""A critic starts at the mean rate, reads no padding, learns what it can read, and does the same for the same seed."""

import pytest
import torch

from poise.lab.critic import HEAD_LEARNING_RATE_FACTOR, SequenceCritic

PROMPT = [2, 3, 4]


def rows(num, *, seed=0):
    """Completions of one prompt that is always the same; the reward is whether the completion begins with token 7."""
    generator = torch.Generator().manual_seed(seed)
    right = torch.rand(num, generator=generator) < 0.5
    lengths = torch.randint(1, 5, (num,), generator=generator).tolist()
    sequences = [[*PROMPT, 7 if good else 8, *[9] * length] for good, length in zip(right, lengths, strict=True)]
    return sequences, right.double()


def test_a_critic_starts_at_the_rate_that_it_is_given(tiny_model):
    sequences, _ = rows(5)
    assert torch.allclose(SequenceCritic(tiny_model, mean_rate=0.2).values(sequences), torch.full((5,), 0.2).double())


def test_the_policy_is_left_alone(tiny_model):
    before = {name: weight.clone() for name, weight in tiny_model.state_dict().items()}
    critic = SequenceCritic(tiny_model)
    critic.fit(*rows(8), epochs=2, learning_rate=1e-2)
    assert all(torch.equal(weight, before[name]) for name, weight in tiny_model.state_dict().items())
    assert any(not torch.equal(w, before[f"model.{n}"]) for n, w in critic.decoder.state_dict().items())


def test_padding_on_either_side_does_not_change_a_value(tiny_model):
    critic = SequenceCritic(tiny_model)
    torch.nn.init.normal_(critic.head.weight)
    alone = critic.values([[2, 3, 4]])
    ids = torch.tensor([[0, 0, 2, 3, 4], [2, 3, 4, 0, 0]])
    values = critic(ids, (ids != 0).long()).detach().sigmoid().double()
    assert torch.allclose(values, alone.expand(2), atol=1e-5)
    # The control: with another last token the value is another.
    assert abs(float(critic.values([[2, 3, 5]]) - alone)) > 1e-3


def test_values_come_in_the_order_of_the_rows(tiny_model):
    critic = SequenceCritic(tiny_model)
    torch.nn.init.normal_(critic.head.weight)
    sequences = [[2, 3, 4, 5, 6], [9], [4, 4], [3, 3, 3]]
    one_by_one = [float(critic.values([each])) for each in sequences]
    assert critic.values(sequences, batch_size=2).tolist() == pytest.approx(one_by_one, abs=1e-5)


def test_soft_targets_are_met(tiny_model):
    critic = SequenceCritic(tiny_model)
    critic.fit([[2, 3], [4, 5]], torch.tensor([0.3, 0.8]), epochs=200, learning_rate=1e-3)
    assert critic.values([[2, 3], [4, 5]]).tolist() == pytest.approx([0.3, 0.8], abs=0.02)


def test_the_same_seed_gives_the_same_critic(tiny_model):
    def fitted(seed):
        critic = SequenceCritic(tiny_model)
        critic.fit(*rows(32), epochs=2, learning_rate=1e-3, batch_size=8, seed=seed)
        return critic.values(rows(8, seed=1)[0])

    torch.rand(3)  # torch's own random state plays no part
    first = fitted(0)
    torch.rand(5)
    assert torch.equal(first, fitted(0))
    assert not torch.equal(first, fitted(1))


def test_training_stops_where_held_back_prompts_get_worse_and_keeps_the_best_weights(tiny_model):
    sequences, _ = rows(48)
    noise = (torch.rand(48, generator=torch.Generator().manual_seed(3)) < 0.5).double()  # nothing to learn
    unlike = [[*each[:3], 10 + k % 40, *each[3:]] for k, each in enumerate(sequences)]
    critic = SequenceCritic(tiny_model)
    fit = critic.fit(unlike, noise, epochs=20, learning_rate=3e-3, held_back=0.25)
    assert len(fit.losses) < 20
    assert min(fit.held_back_errors[-2:]) > min(fit.held_back_errors)
    assert len(fit.held_back_errors) == len(fit.losses) + 1
    again = critic.fit(unlike, noise, epochs=0, held_back=0.25)  # the same split by the same seed
    assert again.held_back_errors == pytest.approx([min(fit.held_back_errors)], abs=1e-6)


def test_the_error_on_held_back_prompts_is_squared_and_not_a_cross_entropy(tiny_model):
    sequences, targets = rows(8)
    fit = SequenceCritic(tiny_model, mean_rate=0.9).fit(sequences, targets * 0, epochs=0, held_back=0.25)
    assert fit.held_back_errors == [pytest.approx(0.81, abs=1e-6)]


def test_prompts_are_held_back_whole(tiny_model):
    # Rows of a prompt share its mark and its reward, which is chance: only a row of the same prompt tells it.
    groups = torch.arange(64) // 2
    reward = (torch.rand(32, generator=torch.Generator().manual_seed(5)) < 0.5).double()[groups]
    sequences = [[2, 10 + int(g) % 50] for g in groups]
    options = {"epochs": 30, "learning_rate": 1e-3, "held_back": 0.25}
    by_prompt = SequenceCritic(tiny_model).fit(sequences, reward, groups=groups, **options)
    by_row = SequenceCritic(tiny_model).fit(sequences, reward, **options)
    assert min(by_row.held_back_errors) < 0.15 < min(by_prompt.held_back_errors)


def test_a_second_fit_goes_on_with_the_moments_of_the_first(tiny_model):
    critic = SequenceCritic(tiny_model)
    critic.fit(*rows(8), learning_rate=1e-3)
    steps = [int(state["step"]) for state in critic._optimizer.state.values()]
    critic.fit(*rows(8), learning_rate=1e-4)
    assert [int(state["step"]) for state in critic._optimizer.state.values()] == [step + 1 for step in steps]
    assert [each["lr"] for each in critic._optimizer.param_groups] == [1e-4, HEAD_LEARNING_RATE_FACTOR * 1e-4]


def test_what_follows_an_epoch_sees_its_weights_and_takes_no_time(tiny_model, monkeypatch):
    seconds = 0.0
    for clock in ("perf_counter", "process_time"):
        monkeypatch.setattr(f"poise.lab.critic.time.{clock}", lambda: seconds)
    sequences, targets = rows(8)
    seen = []

    def look(critic):
        nonlocal seconds
        seen.append(critic.values(sequences))
        seconds += 100.0

    def told(done, total):
        nonlocal seconds
        seconds += 1.0  # for each batch, and once before them

    critic = SequenceCritic(tiny_model)
    fit = critic.fit(sequences, targets, epochs=2, batch_size=4, learning_rate=1e-3, watch=told, after_epoch=look)
    assert fit.seconds == fit.cpu_seconds == 1 + 2 * 2
    assert len(seen) == 2
    assert not torch.equal(*seen)
    assert torch.equal(seen[-1], critic.values(sequences))


def test_the_memory_is_four_times_the_parameters(tiny_model):
    critic = SequenceCritic(tiny_model)
    fit = critic.fit(*rows(8))
    parameters = 4 * sum(each.numel() for each in critic.parameters())
    assert fit.extra_bytes == pytest.approx(4 * parameters, rel=1e-3)  # and one count of steps a tensor


@pytest.mark.parametrize(
    ("sequences", "targets", "options", "sentence"),
    [
        ([], [], {}, "1 row or more"),
        ([[1]], [0.5, 0.5], {}, "1 sequences and 2 targets"),
        ([[1], []], [0.5, 0.5], {}, "at least 1 token"),
        ([[1]], [1.5], {}, "between 0 and 1"),
        ([[1]], [float("nan")], {}, "between 0 and 1"),
        ([[1]], [0.5], {"held_back": 0.3}, "leaves none on one side"),
    ],
)
def test_what_cannot_be_fitted_is_refused(tiny_model, sequences, targets, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        SequenceCritic(tiny_model).fit(sequences, torch.tensor(targets, dtype=torch.float64), **options)
