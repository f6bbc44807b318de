"""What TRL can do, done with poise: two steps under every loss and option, conversations, evaluation, reporting.

The rule of every case: training gets the baseline's advantages, they are those that the library alone computes from
what crossed the seam, and the parameters that should move do.
"""

from typing import Any

import pyarrow.parquet
import pytest
import torch
from conformance import character_tokenizer
from datasets import Dataset
from recording import HOST_CHATTER, RecordedTrainer, addition_prompts, metric
from torch.testing import assert_close
from transformers import TrainerCallback

import poise
from poise.engines.trl.config import LOSS_NORMALIZATION

pytestmark = HOST_CHATTER

LEARNING = {"learning_rate": 1e-2, "per_device_train_batch_size": 8, "max_completion_length": 6}


def parameters(trainer: RecordedTrainer) -> dict[str, torch.Tensor]:
    return {name: each.detach().clone() for name, each in trainer.model.named_parameters()}


def trained(trainer: RecordedTrainer) -> set[str]:
    """Train, hold the advantages against the library's, and name the parameters that moved."""
    before = parameters(trainer)
    trainer.train()
    library = poise.OnlineBaseline(trainer.args.resolved_preset)
    for given, scored in zip(trainer.baseline.given, trainer.scored, strict=True):
        expected = library.step(**given).advantages
        assert expected.abs().max() > 0.01
        assert_close(scored["advantages"].double(), expected, atol=1e-6, rtol=0)
    assert all(torch.tensor(metric(trainer, "grad_norm")).isfinite())
    return {name for name, each in parameters(trainer).items() if not torch.equal(each, before[name])}


@pytest.mark.parametrize("loss_type", sorted(LOSS_NORMALIZATION))
def test_every_loss_trains_on_the_baseline_s_advantages(build, loss_type):
    assert "lm_head.weight" in trained(build(loss_type=loss_type, **LEARNING))


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": False},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"gradient_accumulation_steps": 2},
        {"gradient_accumulation_steps": 2, "steps_per_generation": 2},
        {"num_iterations": 2},
        {"update_share": 0.5, "gradient_accumulation_steps": 2},
        {"beta": 0.05},
        {"beta": 0.05, "sync_ref_model": True, "ref_model_sync_steps": 1},
        {"importance_sampling_level": "sequence", "epsilon_high": 0.28, "delta": 2.0},
        {"top_entropy_quantile": 0.5},
        {"entropy_coef": 0.01},
        {"off_policy_mask_threshold": 0.5},
        {"num_generations": 4},
        {"log_completions": True, "num_completions_to_print": 1},
        {"pad_to_multiple_of": 8},
        {"shuffle_dataset": False, "dataloader_num_workers": 0, "seed": 7},
        {"scale_rewards": False},
    ],
    ids=lambda options: ", ".join(f"{name}={value}" for name, value in options.items()),
)
def test_every_option_trains_on_the_baseline_s_advantages(build, options):
    assert "lm_head.weight" in trained(build(**(LEARNING | options)))


@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_only_the_adapter_moves_under_lora(build, beta):
    peft = pytest.importorskip("peft")
    adapter = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    moved = trained(build(beta=beta, named={"peft_config": adapter}, **LEARNING))
    assert moved
    assert all("lora_" in name for name in moved)


CHAT_TEMPLATE = "{% for m in messages %}{{ '#' if m['role'] == 'user' else '>' }}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"  # noqa: E501


def test_conversations_are_rendered_paired_and_rewarded(build):
    contents = [f"{i}+{i % 3}=" for i in range(8)]
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": each}], "level": each[0]} for each in contents])
    tokenizer = character_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    seen: list[Any] = []

    def reward(prompts: Any, completions: Any, level: list[str], **columns: Any) -> list[float]:
        seen.extend(zip(prompts, completions, level, strict=True))
        return [float(len(each[0]["content"])) for each in completions]

    trainer = build(data=data, reward=reward, named={"processing_class": tokenizer}, domain_column="level", **LEARNING)
    assert trained(trainer)
    prompt, completion, level = seen[0]
    assert prompt[0]["role"] == "user"
    assert completion[0]["role"] == "assistant"
    assert prompt[0]["content"].startswith(level)
    given = trainer.baseline.given[0]
    assert [given["prompts"].count(each) for each in given["prompts"]] == [2] * 16
    rendered = tokenizer.batch_decode(trainer.scored[0]["prompt_ids"], skip_special_tokens=True)
    assert rendered == [f"#{each[0]['content']}>" for each, _, _ in seen[:16]]
    assert trainer.last_rollouts["completions"] == [each[0]["content"] for _, each, _ in seen[-16:]]
    assert given["domains"] == [each for _, _, each in seen[:16]]


def test_evaluation_sets_by_name_are_measured_between_steps(build):
    sets = {"small": addition_prompts(8), "large": addition_prompts(16)}
    trainer = build(
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=8,
        named={"eval_dataset": sets},
        **LEARNING,
    )
    trainer.train()
    assert len(trainer.baseline.given) == 1
    logged = set().union(*trainer.state.log_history)
    assert {"eval_small_loss", "eval_large_loss", "eval_reward"} <= logged
    assert not [name for name in logged if name.startswith("eval") and "poise/" in name]


def test_reports_get_the_metrics_of_the_baseline(build):
    class Report(TrainerCallback):
        lines: list[dict[str, Any]]

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **named: Any) -> None:
            self.lines.append(dict(logs))

    report = Report()
    report.lines = []
    trainer = build(named={"callbacks": [report]})
    trainer.train()
    assert set(trainer.baseline.gave[0].metrics) <= set(report.lines[0])


def test_the_table_of_completions_shows_the_advantages_of_the_baseline(build, tmp_path):
    trainer = build(log_completions=True, **LEARNING)
    trainer.train()
    (table, *_) = sorted((tmp_path / "run" / "completions").glob("*.parquet"))
    shown = pyarrow.parquet.read_table(table)
    assert_close(
        torch.tensor(shown["advantage"].to_pylist(), dtype=torch.float64),
        trainer.baseline.gave[0].advantages,
        atol=1e-6,
        rtol=0,
    )


def test_a_small_data_set_is_trained_on_with_an_extra_forward(build, caplog):
    trainer = build(data=addition_prompts(4), **LEARNING)
    assert "the data set has 4 prompts" in caplog.text
    trained(trainer)
    assert metric(trainer, "poise/extra_forward") == [1.0, 1.0]


@pytest.mark.parametrize(
    ("data", "options", "sentence"),
    [
        (addition_prompts(3), {}, "holds 8 prompts, and the data set needs as many or more, got 3"),
        (addition_prompts(0), {}, "needs as many or more, got 0"),
        (addition_prompts(4), {"steps_per_generation": 2}, "a generation batch holds 8 prompts"),
        (addition_prompts(4), {"poise_feature_pass": "require_free"}, "a generation batch holds 8 prompts"),
        (Dataset.from_list([{"question": "1"}] * 9), {}, "the data set needs a column 'prompt', got question"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused(build, data, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        build(data=data, **(LEARNING | options))
