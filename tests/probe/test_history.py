"""What is remembered of each prompt, by hand and through a state."""

import torch

from poise.batch import prompt_keys
from poise.probe.history import PromptHistory


def recalled(history, *keys):
    means, counts = history.recall(keys)
    return means.tolist(), counts.tolist()


def test_a_new_prompt_has_no_past():
    assert recalled(PromptHistory(forgetting=0.5, capacity=10), 7, 8) == ([0.0, 0.0], [0.0, 0.0])


def test_one_step_is_remembered_as_its_mean_and_count():
    history = PromptHistory(forgetting=0.5, capacity=10)
    history.observe([7, 8, 7, 7], [1.0, 0.5, 0.0, 1.0])
    assert recalled(history, 8, 7, 9) == ([0.5, 2 / 3, 0.0], [1.0, 3.0, 0.0])


def test_the_past_fades_with_each_time_the_prompt_is_seen_and_not_otherwise():
    history = PromptHistory(forgetting=0.5, capacity=10)
    history.observe([7, 7], [1.0, 1.0])
    history.observe([8], [0.0])
    assert recalled(history, 7) == ([1.0], [2.0])
    history.observe([7, 7], [0.0, 0.0])  # (.5 * 2 + 0) / (.5 * 2 + 2)
    assert recalled(history, 7) == ([1 / 3], [3.0])


def test_without_forgetting_it_is_the_mean_of_everything():
    history = PromptHistory(forgetting=1.0, capacity=10)
    for reward in (1.0, 0.0, 0.0, 1.0, 0.25):
        history.observe([7], [reward])
    assert recalled(history, 7) == ([0.45], [5.0])


def test_the_prompts_longest_unseen_are_dropped():
    history = PromptHistory(forgetting=0.5, capacity=2)
    for key in (1, 2, 1, 3):
        history.observe([key], [1.0])
    assert [count > 0 for count in recalled(history, 1, 2, 3)[1]] == [True, False, True]


def test_a_restored_history_goes_on_as_if_nothing_had_happened():
    one, other = PromptHistory(forgetting=0.7, capacity=3), PromptHistory(forgetting=0.7, capacity=3)
    one.observe([1, 2, 3], [0.1, 0.2, 0.3])
    one.observe([1], [1.0])
    other.load_state_dict(one.state_dict())
    for history in (one, other):
        history.observe([4, 2**62], [0.5, 0.5])
    assert recalled(one, 1, 2, 3, 4, 2**62) == recalled(other, 1, 2, 3, 4, 2**62)
    assert recalled(other, 1)[1] != [0.0]  # seen again, so kept; 2 and 3 went


def test_an_empty_history_can_be_saved():
    state = PromptHistory(forgetting=0.5, capacity=3).state_dict()
    assert state["keys"].dtype == torch.int64
    assert state["past"].shape == (0, 2)


def test_keys_are_stable_distinct_and_fit_an_int64():
    prompts = [f"prompt {k}" for k in range(1000)] + [0, "0", (0,), ("a", 1)]
    keys = prompt_keys(prompts)
    assert len(set(keys)) == len(prompts)
    assert all(0 <= key < 2**63 for key in keys)
    assert prompt_keys(["2+2="]) == [9018634511670841894]
