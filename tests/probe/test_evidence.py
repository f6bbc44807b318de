"""What a rollout may see: blocks of columns against loops, and that row i holds nothing of rollout i."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from oracles import drawn_rollouts, evidence_of, sibling_mean
from poise.probe.evidence import BLOCKS, EVIDENCE_SETS, HIDDEN_BLOCKS, evidence_matrix, settled_frame

SIZES = (2, 3, 1, 4, 2)
UNGRADABLE = 9  # one of the four


def columns(rows, *blocks, num_domains=1, components=3):
    frame = settled_frame(rows, components=components)
    return evidence_matrix(rows, blocks, frame, num_domains=num_domains).columns


def test_sets_grow_from_nothing_to_everything():
    sets = list(EVIDENCE_SETS.values())
    assert (sets[0], sets[-1]) == ((), BLOCKS)
    assert len({frozenset(blocks) for blocks in sets}) == len(sets)
    assert all(len(smaller) <= len(larger) for smaller, larger in pairwise(sets))
    # Without hidden states they are nested; with them, each holds all that is known without.
    plain = [set(blocks) for blocks in sets if HIDDEN_BLOCKS.isdisjoint(blocks)]
    assert all(smaller < larger for smaller, larger in pairwise(plain))
    assert all(plain[-1] < set(blocks) for blocks in sets[len(plain) :])


def test_rows_hold_the_means_of_gradable_siblings():
    rollouts = drawn_rollouts(SIZES, seed=0)
    gradable = torch.ones(len(rollouts.rewards), dtype=torch.bool)
    gradable[UNGRADABLE] = False
    rows = evidence_of(replace(rollouts, rewards=torch.where(gradable, rollouts.rewards, torch.nan)))
    for made, source in [
        (rows.sibling_states, rollouts.completion),
        (rows.sibling_entropies, rollouts.entropies),
        (rows.sibling_reward[:, None], rollouts.rewards[:, None]),
    ]:
        loops = [sibling_mean(column, rollouts.prompts, gradable.tolist()) for column in source.T.tolist()]
        assert_close(made.double(), torch.tensor(loops, dtype=torch.float64).T, atol=1e-6, rtol=0)
    assert rows.sibling_count.tolist() == [1, 1, 2, 2, 2, 0, 2, 2, 2, 3, 1, 1]
    assert (rows.reward[UNGRADABLE], rows.weight[UNGRADABLE]) == (0, 0)


def test_prompt_states_are_a_siblings_and_only_a_lone_rollouts_own():
    rollouts = drawn_rollouts((2, 1), seed=0)
    moved = rollouts.prompt + torch.arange(3.0)[:, None]
    rows = evidence_of(replace(rollouts, prompt=moved))
    assert_close(rows.prompt_states, moved[[1, 0, 2]])


@pytest.mark.parametrize("row", range(sum(SIZES)))
def test_a_row_of_evidence_does_not_change_with_its_own_rollout(row):
    rollouts = drawn_rollouts(SIZES, seed=0)
    other = drawn_rollouts(SIZES, seed=1)
    lone = rollouts.prompts.count(rollouts.prompts[row]) == 1
    before, frame = evidence_of(rollouts), settled_frame(evidence_of(other), components=3)
    names = ("completion", "entropies", "rewards", "weights") + (() if lone else ("prompt",))
    changed = {name: getattr(rollouts, name).clone() for name in names}
    for name in names:
        changed[name][row] = 7 + getattr(other, name)[row]
    after = evidence_of(replace(rollouts, **changed))
    matrices = [evidence_matrix(rows, BLOCKS, frame, num_domains=1).columns for rows in (before, after)]
    assert_close(matrices[0][row], matrices[1][row], atol=1e-12, rtol=0)
    if not lone:
        assert (matrices[0] - matrices[1]).abs().max() > 0.1  # the siblings do see it


def test_scalar_columns_by_hand():
    rollouts = drawn_rollouts((3, 1), seed=0)
    rollouts = replace(rollouts, rewards=torch.tensor([1.0, 0.0, 1.0, 1.0]).double())
    rows = evidence_of(rollouts, history=torch.tensor([0.5, 0.5, 0.5, 0.0]).double())
    assert (columns(rows, "constant") / 10).tolist() == [[1, 0], [1, 0], [1, 0], [1, 1]]
    two_thirds = 2 / 3  # of two siblings
    expected = torch.tensor([[0.5, 1], [1, 1], [0.5, 1], [0, 0]]).double() * two_thirds
    assert_close(columns(rows, "sibling_reward") / 10, expected)
    expected = torch.tensor([[0.5, 1], [0.5, 1], [0.5, 1], [0, 0]]).double() / 2  # count 1 of (1 + 1)
    assert_close(columns(rows, "history") / 10, expected)


def test_domains_are_indicators_and_a_single_one_has_no_column():
    rows = evidence_of(drawn_rollouts((2, 2), seed=0))
    rows.domain[2:] = 1
    assert (columns(rows, "domain", num_domains=3) / 10).tolist() == [[1, 0, 0]] * 2 + [[0, 1, 0]] * 2
    rows.domain[:] = 0
    assert columns(rows, "domain", num_domains=1).shape == (4, 0)


def test_states_of_absent_siblings_are_zero_columns():
    rows = evidence_of(drawn_rollouts((3, 1, 2), seed=0))
    states = columns(rows, "sibling_states")
    assert not states[3].any()
    assert states[[0, 1, 2, 4, 5]].all()


def test_columns_of_some_blocks_and_fewer_axes_are_picked_out():
    rows = evidence_of(drawn_rollouts((2,) * 8, seed=0))
    frame = settled_frame(rows, components=5)
    matrix = evidence_matrix(rows, ("constant", "sibling_reward", "sibling_states"), frame, num_domains=1)
    picked = matrix.chosen(["constant", "sibling_states"], components=2)
    narrow = evidence_matrix(rows, ("constant", "sibling_states"), settled_frame(rows, components=2), num_domains=1)
    assert_close(matrix.columns[:, picked], narrow.columns)


def test_axes_are_not_settled_on_rows_without_siblings():
    rows = evidence_of(drawn_rollouts((2, 2, 2, 1, 1, 1), seed=0))
    frame = settled_frame(rows, components=3)
    assert_close(frame.sibling.mean, rows.sibling_states[:6].double().mean(dim=0))
    assert_close(frame.prompt.mean, rows.prompt_states.double().mean(dim=0))


def test_an_unknown_block_is_refused():
    rows = evidence_of(drawn_rollouts((2,), seed=0))
    with pytest.raises(ValueError, match=r"evidence blocks are constant, .*; got 'crystal_ball'"):
        columns(rows, "crystal_ball")


def test_rows_can_be_cut_and_joined():
    rows = evidence_of(drawn_rollouts(SIZES, seed=0))
    joined = rows[:4].followed_by(rows[4:])
    assert len(joined) == len(rows)
    assert all(torch.equal(getattr(joined, name), getattr(rows, name)) for name in rows.__dataclass_fields__)
