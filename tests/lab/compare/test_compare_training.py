"""Arms share their budget, dynamic sampling trains on mixed groups and counts the rest, and measuring is free."""

import json
from contextlib import closing
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from poise.lab.compare.arms import ARMS
from poise.lab.compare.pages import write_results
from poise.lab.compare.plan import FIRST_TUNING_SEED, Comparison, Conditions, Run
from poise.lab.compare.run import completed_run, run_trainer
from poise.lab.compare.schedule import RunFailed, Schedule, in_own_process
from poise.lab.compare.trainers import DynamicSamplingTrainer, arm_trainer
from poise.models.embedded import embedded_model_path
from poise.storage.run_directory import RunDirectory
from poise.tasks.graded_task import GradedTask

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]

CONDITIONS = Conditions(rollouts=48, batch_rollouts=16, evaluations=3, eval_prompts=4, completions=3)
LENGTH = 6


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(embedded_model_path(), padding_side="left")


def trainer_of(run, conditions, tokenizer, graded_task, folder):
    config = run.config(conditions, str(folder))
    return run_trainer(conditions, run, config, tokenizer, graded_task, conditions.run_settings(seed=run.seed))


def test_every_arm_trains_the_adapter_that_is_asked_for(tmp_path, tokenizer):
    conditions = replace(CONDITIONS, settings={"use_peft": True, "lora_r": "2"})
    with closing(GradedTask("embedded", tokenizer=tokenizer)) as task:
        for arm in ("poise", "grpo", "critic"):
            trainer = trainer_of(Run(arm, 1e-3, 5), conditions, tokenizer, task, tmp_path)
            trained = [name for name, each in trainer.model.named_parameters() if each.requires_grad]
            assert trained
            assert all("lora_" in name for name in trained)


# One budget.


def test_all_arms_have_the_same_prompts_weights_rollouts_and_updates(tmp_path, tokenizer):
    seen = {}
    with closing(GradedTask("embedded", tokenizer=tokenizer)) as task:
        for arm in ("poise", "grpo", "dapo", "critic", "critic-single", "running-mean", "spo", "remax", "poise-single"):
            trainer = trainer_of(Run(arm, 1e-3, 5), CONDITIONS, tokenizer, task, tmp_path)
            size = trainer.num_generations
            batches = iter(trainer.get_train_dataloader())
            first, again, second = next(batches), next(batches), next(batches)
            assert first == again  # as many updates as the batch has minibatches
            stream = [row["prompt"] for row in first[::size] + second[::size]]
            seen[arm] = {
                "weights": [p.detach().clone() for p in trainer.model.parameters()],
                "prompts": trainer.train_dataset["prompt"],
                "stream": stream,
                "rollouts": len(first),
                "updates": trainer.args.steps_per_generation,
            }
    ours = seen.pop("poise")
    assert ours["rollouts"] == CONDITIONS.batch_rollouts
    assert ours["updates"] == CONDITIONS.batch_updates
    for theirs in seen.values():
        assert all(torch.equal(a, b) for a, b in zip(ours["weights"], theirs["weights"], strict=True))
        assert theirs["prompts"] == ours["prompts"]
        assert theirs["stream"] == ours["prompts"][: len(theirs["stream"])]
        assert (theirs["rollouts"], theirs["updates"]) == (ours["rollouts"], ours["updates"])


# Dynamic sampling.


class Marked:
    """Rewards that differ within a group where its prompt is marked, and are 1 where it is not; keeps what it saw."""

    __name__ = "marked"

    def __init__(self):
        self.draws, self.tokens = [], 0

    def __call__(self, prompts, completions, completion_ids, marked, **columns):
        self.draws.append(len(prompts))
        self.tokens += sum(map(len, completion_ids))
        return [float(place % 2) if mark else 1.0 for place, mark in enumerate(marked)]


def resampling_trainer(marks, tmp_path, tokenizer, *, arm="dapo", group_size=4):
    reward = Marked()
    rows = [{"prompt": f"sum {a}+{a % 7 + 1}<think>", "marked": mark} for a, mark in enumerate(marks, start=1)]
    conditions = Conditions(rollouts=96, batch_rollouts=16, settings={"max_completion_length": LENGTH})
    run = Run(arm, 1e-3, 0)
    config = run.config(conditions, str(tmp_path))
    config.num_generations = group_size
    model = AutoModelForCausalLM.from_pretrained(embedded_model_path(), dtype=torch.float32)
    trainer = arm_trainer(
        ARMS[arm], model, reward, config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    assert isinstance(trainer, DynamicSamplingTrainer)
    trainer.model.train()
    return trainer, reward, [row["prompt"] for row in rows]


def trained_prompts(scored, trainer):
    return [
        trainer.processing_class.decode(ids[mask.bool()])
        for ids, mask in zip(scored["prompt_ids"], scored["prompt_mask"], strict=True)
    ]


def test_a_step_of_dapo_trains_on_the_first_mixed_groups_of_the_stream(tmp_path, tokenizer):
    marks = [1, 0, 0, 1, 0, 0, 1, 0, 1, 1, 0, 1] + [1] * 12
    trainer, reward, prompts = resampling_trainer(marks, tmp_path, tokenizer)
    scored = trainer._generate_and_score_completions([{"prompt": "of the sampler", "marked": 0}] * 16)
    wanted = [prompt for prompt, mark in zip(prompts, marks, strict=True) if mark][:4]
    assert trained_prompts(scored, trainer) == [prompt for prompt in wanted for _ in range(4)]
    assert bool((scored["advantages"].abs() > 0.5).all())
    assert int(scored["num_items_in_batch"]) == int(scored["completion_mask"].sum())
    # Draws of 4 prompts: 2 mixed, then 1, then 3, of which the batch takes 1. Rewards are asked for once a draw.
    assert reward.draws == [16, 16, 16]
    tally = trainer.tally
    assert (tally.draws, tally.rollouts, tally.prompts) == (3, 48, 12)
    assert (tally.silent_prompts, tally.surplus_prompts, tally.unfilled_steps) == (6, 2, 0)
    assert tally.tokens == reward.tokens
    kept = int(scored["completion_mask"].sum())
    assert kept + tally.silent_tokens + tally.surplus_tokens == tally.tokens
    # The next step goes on where this one stopped.
    scored = trainer._generate_and_score_completions([{"prompt": "of the sampler", "marked": 0}] * 16)
    assert trained_prompts(scored, trainer)[::4] == prompts[12:16]


def test_dynamic_sampling_gives_up_in_the_end_and_says_so(tmp_path, tokenizer):
    trainer, reward, _ = resampling_trainer([0] * 7, tmp_path, tokenizer, group_size=8)
    scored = trainer._generate_and_score_completions([{"prompt": "of the sampler", "marked": 0}] * 16)
    assert reward.draws == [16] * 10
    assert trainer.tally.unfilled_steps == 1
    assert bool((scored["advantages"] == 0).all())
    assert len(scored["advantages"]) == 16


# Runs.


def lines_of(folder):
    return RunDirectory(folder).read_metrics()


def test_two_arms_on_two_seeds_from_end_to_end(tmp_path):
    asked = Comparison(CONDITIONS, ("poise", "dapo"), num_seeds=2, learning_rates=(1e-3,), num_tuning_seeds=0)
    schedule = Schedule(tmp_path, asked)
    own_process = []

    def carry(conditions, run, folder, *, side_by_side, told):
        if own_process:
            completed_run(conditions, run, folder, side_by_side=side_by_side, told=told)
            return
        own_process.append(run)
        in_own_process(conditions, run, folder, side_by_side=side_by_side, told=told)

    said = []
    schedule.carry_out(watch=lambda *told: said.append(told), carry=carry)
    results = write_results(schedule)
    assert (
        len([what for what, *_ in said if what.startswith(own_process[0].name)]) > 2
    )  # a process of its own says how it goes
    assert results["seeds"] == [0, 1]
    for arm, found in results["arms"].items():
        assert found["rollouts"] >= 48
        summaries = [schedule.summary(Run(arm, 1e-3, seed)) for seed in (0, 1)]
        assert found["final_accuracies"] == pytest.approx([each["final_accuracy"] for each in summaries])
    # In one process or another, a run is the same.
    again = tmp_path / "again"
    completed_run(CONDITIONS, own_process[0], again)
    accuracies = [line["accuracy"] for line in lines_of(again)]
    assert accuracies == [line["accuracy"] for line in schedule.lines(own_process[0])]
    assert "chance" in (tmp_path / "compare.md").read_text()
    # Pass@1 of three completions is near the accuracy of one; twins measured the untrained policy.
    assert set(results["arms"]["dapo"]["pass_at"]) == {"1", "2", "3"}
    before = results["sharpness_before"]
    assert 0 <= before["pass_at"]["1"]["value"] <= before["pass_at"]["3"]["value"] <= 1
    assert before["pass_at"]["1"]["low"] == before["pass_at"]["1"]["high"]  # the same policy on each seed
    assert 1 <= before["distinct_answers"]["value"] <= 3
    json.loads((tmp_path / "compare.json").read_text())


class Poison(TrainerCallback):
    """Takes the numbers out of a policy after its third update."""

    def on_step_end(self, args, state, control, model, **named):
        if state.global_step == 3:
            for parameter in model.parameters():
                parameter.data.fill_(torch.nan)


def test_a_policy_that_diverges_ends_its_run_with_an_accuracy_of_zero(tmp_path, monkeypatch):
    def poisoned(*positional, **named):
        trainer = arm_trainer(*positional, **named)
        trainer.add_callback(Poison())
        return trainer

    monkeypatch.setattr("poise.lab.compare.run.arm_trainer", poisoned)
    summary = completed_run(CONDITIONS, Run("grpo", 1e-3, 0), tmp_path)
    assert summary["diverged"]
    assert summary["final_accuracy"] == 0.0
    assert summary["accuracy_before"] > 0


def test_a_run_that_fails_leaves_a_sentence_and_no_summary(tmp_path):
    conditions = Conditions(rollouts=48, batch_rollouts=16, settings={"task": str(tmp_path / "none.jsonl")})
    run = Run("rloo", 1e-3, 0)
    with pytest.raises(RunFailed, match=r"run rloo/lr-0\.001/seed-0 failed: poise compare: .*none\.jsonl"):
        in_own_process(conditions, run, tmp_path / run.name, side_by_side=1, told=lambda *said: None)
    assert not (tmp_path / run.name / "summary.json").exists()


def test_a_run_that_only_chooses_a_learning_rate_samples_no_more_than_it_must(tmp_path):
    summary = completed_run(CONDITIONS, Run("rloo", 1e-3, FIRST_TUNING_SEED), tmp_path / "tuning")
    assert not {"sharpness", "sharpness_before"} & set(summary)
