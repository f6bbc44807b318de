"""Baselines for one rollout a prompt: their numbers by hand, and what they look at against unpadded sequences."""

from contextlib import closing

import pytest
import torch
from transformers import AutoTokenizer

from poise.batch import checked_batch, prompt_keys
from poise.lab.compare.one_rollout import GreedyReward, RunningMean, ValueTracker, mean_divergence
from poise.lab.compare.plan import Conditions, Run
from poise.lab.compare.run import run_trainer
from poise.models.embedded import embedded_model_path
from poise.tasks.graded_task import GradedTask

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]
NAN = float("nan")


def stepped(method, rewards, prompts, *, moved=None):
    """The baselines of one step."""
    if moved:
        method._moved = {key: moved[prompt] for key, prompt in zip(prompt_keys(prompts), prompts, strict=True)}
    batch = checked_batch(
        None,
        torch.tensor(rewards).double(),
        prompts,
        None,
        None,
        needs_features=False,
        needs_siblings=False,
        scalars=(),
    )
    return method.step(batch).baselines.tolist()


def test_the_running_mean_by_hand():
    method = RunningMean()
    assert stepped(method, [1, 0], "ab") == [0, 0]
    assert stepped(method, [1, 1], "cd") == [0.5, 0.5]
    assert stepped(method, [NAN, 0], "ab") == pytest.approx([2.9 / 3.8] * 2)  # 0.9 * 1 + 2 of 0.9 * 2 + 2
    assert stepped(method, [0], "a") == pytest.approx([0.9 * 2.9 / (0.9 * 3.8 + 1)])
    restored = RunningMean()
    restored.load_state_dict(method.state_dict())
    assert restored.mean == method.mean


def test_the_tracker_against_a_table_worked_by_hand():
    method = ValueTracker()
    # The first step knows nothing: 8 rollouts of which half are right stand for each prompt, and fade to 0.96.
    assert stepped(method, [1, 0], "ab") == [0.5, 0.5]
    # a: 0.96 * 4 + 1 = 4.84 right, 3.84 wrong. c is new: 8 rollouts at the mean of all so far, 1/2.
    assert stepped(method, [1, 1], "ac", moved={"a": 0.06, "c": 0.0}) == pytest.approx([4.84 / 8.68, 0.5])
    # A move of 0.06 nats would halve what a knew; no more than an eighth of it is forgotten at once.
    right, wrong = 0.875 * 4.84 + 1, 0.875 * 3.84
    assert stepped(method, [0], "a", moved={"a": 0.006}) == pytest.approx([right / (right + wrong)])
    kept = 2**-0.1  # between the bounds
    right, wrong = kept * right, kept * wrong + 1
    # Two rollouts of one prompt in a step: both get what was known before, and both are learned from.
    assert stepped(method, [1, NAN, 0], "aad") == pytest.approx([right / (right + wrong)] * 2 + [2.61 / 4.42])
    right, wrong = 0.96 * right + 1, 0.96 * wrong
    assert stepped(method, [0], "a") == pytest.approx([right / (right + wrong)])


@pytest.mark.parametrize("method", [RunningMean, ValueTracker])
def test_a_rollouts_reward_moves_later_baselines_and_never_its_own(method):
    def baselines(reward):
        made = method()
        return [stepped(made, rewards, "abc") for rewards in ([1, 0, 1], [reward, 1, 0], [0, 0, 0])]

    one, other = baselines(1.0), baselines(0.0)
    assert one[1][0] == other[1][0]
    assert abs(one[2][0] - other[2][0]) > 0.01


def test_the_divergence_is_right_in_expectation():
    before, now = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]]).double()
    exact = float((before * (before / now).log()).sum())
    one = [mean_divergence(before[k, None].log(), now[k, None].log()) for k in range(3)]
    assert sum(float(p) * each for p, each in zip(before, one, strict=True)) == pytest.approx(exact)
    assert sum(float(p) * each for p, each in zip(now, one, strict=True)) != pytest.approx(exact, rel=0.05)
    assert mean_divergence(before[:0], now[:0]) == 0


@pytest.fixture(params=[2, 1], ids=["minibatches", "one batch"])
def trainer(request, tmp_path):
    def made(arm):
        conditions = Conditions(rollouts=48, batch_rollouts=16, batch_updates=request.param, evaluations=3)
        run = Run(arm, 1e-3, 0)
        config = run.config(conditions, str(tmp_path))
        found = run_trainer(conditions, run, config, tokenizer, task, conditions.run_settings(seed=0))
        found.model.train()
        return found

    tokenizer = AutoTokenizer.from_pretrained(embedded_model_path(), padding_side="left")
    with closing(GradedTask("embedded", tokenizer=tokenizer)) as task:
        yield made


def sequences(scored):
    """Prompt and completion of each row, unpadded."""
    for row in range(len(scored["prompt_ids"])):
        kept = [scored[f"{part}_ids"][row, scored[f"{part}_mask"][row].bool()] for part in ("prompt", "completion")]
        yield kept[0], kept[1]


def oracle_logprobs(model, prompt, completion):
    with torch.no_grad():
        logprobs = model(torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return logprobs.gather(1, completion[:, None])[:, 0]


def test_the_tracker_measures_how_far_the_policy_moved_on_what_it_wrote_last(trainer):
    trainer = trainer("spo")
    rows = [dict(row) for row in trainer.train_dataset.select(range(16))]
    first = trainer._generate_and_score_completions(rows)
    before = [oracle_logprobs(trainer.model, *each) for each in sequences(first)]
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    wanted = [
        mean_divergence(known, oracle_logprobs(trainer.model, *each))
        for known, each in zip(before, sequences(first), strict=True)
    ]
    seen, method = {}, trainer.baseline.method
    step = method.step
    method.step = lambda batch: seen.update(method._moved) or step(batch)
    trainer._generate_and_score_completions(rows[:8] + [dict(r) for r in trainer.train_dataset.select(range(16, 24))])
    keys = prompt_keys([row["prompt"] for row in rows])
    assert min(wanted) > 1e-4
    assert [seen[key] for key in keys[:8]] == pytest.approx(wanted[:8], rel=1e-3, abs=1e-6)
    assert len(seen) == len(set(keys[:8]))  # nothing is known of how the policy moved on prompts that are new


def test_the_greedy_rollout_is_the_likeliest_token_each_time_and_counts_as_sampled(trainer):
    trainer = trainer("remax")
    rows = [dict(row) for row in trainer.train_dataset.select(range(15))]
    rows.append(dict(rows[0]))  # a prompt twice: one greedy rollout does for both
    assert len({row["prompt"] for row in rows}) == 15
    asked, graded = [], trainer.graded
    trainer.graded = lambda *given: asked.append((given[2], graded(*given))) or asked[-1][1]
    scored = trainer._generate_and_score_completions(rows)
    (sampled, rewards), (greedy, baselines) = asked
    assert len(sampled) == 16
    for row, text in zip(rows[:3], greedy, strict=False):
        ids = trainer.processing_class(row["prompt"], return_tensors="pt", add_special_tokens=False)["input_ids"][0]
        length = len(ids)
        while len(ids) < length + 64 and (len(ids) == length or ids[-1] != trainer.processing_class.eos_token_id):
            with torch.no_grad():
                ids = torch.cat([ids, trainer.model(ids[None]).logits[0, -1].argmax()[None]])
        assert trainer.processing_class.decode(ids[length:], skip_special_tokens=True) == text
    expected = rewards[:, 0] - baselines[:, 0][[*range(15), 0]]
    assert torch.equal(scored["advantages"].double(), expected.double())
    assert isinstance(trainer.baseline.method, GreedyReward)
    of_greedy = trainer.tally.tokens - int(scored["completion_mask"].sum())
    lengths = [len(trainer.processing_class(text, add_special_tokens=False)["input_ids"]) for text in greedy]
    assert sum(lengths) <= of_greedy <= sum(lengths) + 15  # each with the token that ends it
    assert trainer.tally.rollouts == 16 + 15
    assert trainer.generation_config.do_sample
