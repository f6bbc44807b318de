"""The TRL engine on a tiny policy: the numbers that it hands over and gets back, and refusals.

A recorder stands between trainer and baseline, so that every test sees exactly what crossed the seam.
"""

import logging
import runpy
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trl.trainer.grpo_trainer
from conformance import (
    LAYERS,
    library_advantages,
    recorded_policy,
    recorded_steps,
    rollout_features,
    stacked,
)
from datasets import Dataset
from recording import HOST_CHATTER, RecordedTrainer, addition_prompts, metric, share_of_digits
from torch.testing import assert_close
from transformers import HfArgumentParser
from trl import GRPOConfig

import poise
from poise.batch import prompt_id
from poise.engines.trl import PoiseConfig, PoiseTrainer, kept_rollouts
from poise.engines.trl.own_tokens import completion_text

pytestmark = HOST_CHATTER


def recomputed(trainer: RecordedTrainer, batch: int, *, layers: list[int], normalization: str = "constant") -> Any:
    """Features and weights of a scored batch, one rollout at a time, without padding, from all hidden states."""
    scored = trainer.scored[batch]
    policy = trainer.accelerator.unwrap_model(trainer.model).eval()
    rows = []
    for prompt, prompt_mask, completion, completion_mask in zip(
        scored["prompt_ids"], scored["prompt_mask"], scored["completion_ids"], scored["completion_mask"], strict=True
    ):
        rows.append(
            rollout_features(
                policy,
                prompt[prompt_mask.bool()].tolist(),
                completion[completion_mask.bool()].tolist(),
                layers=layers,
                pool_tokens=trainer.args.pool_tokens,
                temperature=trainer.args.temperature,
                end_of_thinking_ids=trainer._end_of_thinking_ids,
                loss_normalization=normalization,
            )
        )
    return stacked(rows)


def assert_features_close(found: Any, expected: Any) -> None:
    for name in ("prompt", "completion", "entropies"):
        assert_close(getattr(found, name), getattr(expected, name), atol=2e-5, rtol=2e-5)
    assert_close(found.missing, expected.missing)


# Learning.


def test_a_policy_learns_and_every_number_stays_finite(build):
    trainer = build(learning_rate=1e-2, max_steps=60, per_device_train_batch_size=8, steps_per_generation=4)
    trainer.train()
    rewards = metric(trainer, "reward")
    assert sum(rewards[-3:]) / 3 > rewards[0] + 0.25
    for step in trainer.baseline.gave:
        assert step.baselines.isfinite().all()
        assert step.advantages.isfinite().all()
    assert metric(trainer, "poise/extra_forward") == [0.0] * len(trainer.scored)


@pytest.mark.parametrize("preset", ["rloo", "none"])
def test_a_preset_without_features_opens_no_pass(build, preset):
    trainer = build(preset=preset, steps_per_generation=1)
    trainer.train()
    assert trainer.baseline.given[0]["features"] is None
    assert metric(trainer, "poise/extra_forward") == []


# What is handed over.


def test_features_and_weights_equal_those_of_the_plain_model(build):
    trainer = build(layers=[0, 2], temperature=0.7, loss_type="grpo", end_of_thinking="#")
    trainer.train()
    given = trainer.baseline.given[0]
    features, weights = recomputed(trainer, 0, layers=[0, 2], normalization="sequence")
    assert_features_close(given["features"], features)
    assert_close(given["weights"], weights, atol=1e-4, rtol=1e-4)
    assert features.missing[:, 3].any()
    assert not features.missing[:, 3].all()
    # The control: the features of other rollouts are told apart by this comparison.
    assert (given["features"].completion - features.completion.flip(0)).abs().max() > 0.1


def test_scalars_that_are_asked_for_are_counted_on_the_rollouts_own_tokens(build):
    names = ["completion_length", "completion_unique_ratio", "answer_mean_entropy"]
    trainer = build(scalars=names, preset="paper")
    trainer.train()
    columns = trainer.baseline.given[0]["features"].columns(names)
    scored = trainer.scored[0]
    for row, (ids, mask) in enumerate(zip(scored["completion_ids"], scored["completion_mask"].bool(), strict=True)):
        tokens = ids[mask].tolist()
        assert columns[row, :2].tolist() == pytest.approx([len(tokens) / 1000, len(set(tokens)) / len(tokens)])
    assert columns[:, 0].std() > 0
    assert torch.equal(columns[:, 2], trainer.baseline.given[0]["features"].entropies[:, 2])


def test_default_layer_stands_at_six_tenths_of_the_depth(build):
    trainer = build()
    trainer.train()
    features, _ = recomputed(trainer, 0, layers=[2])
    assert_features_close(trainer.baseline.given[0]["features"], features)


def test_prompts_domains_and_rewards_are_those_of_the_rollouts(build):
    data = Dataset.from_list([{"prompt": f"{i % 5}+1=", "domain": f"d{i % 5}"} for i in range(16)])
    trainer = build(data=data, shuffle_dataset=False)
    trainer.train()
    given = trainer.baseline.given[0]
    spelled = trainer.processing_class.batch_decode(trainer.scored[0]["prompt_ids"], skip_special_tokens=True)
    assert given["prompts"] == spelled
    assert len(set(given["prompts"])) == 5
    assert given["domains"] == [f"d{each[0]}" for each in spelled]
    texts = trainer.processing_class.batch_decode(trainer.scored[0]["completion_ids"], skip_special_tokens=True)
    assert_close(given["rewards"], torch.tensor(share_of_digits(texts), dtype=torch.float64), atol=1e-6, rtol=0)


def test_rewards_are_weighted_sums_and_ungradable_rows_are_nan(build):
    def sevens(completions: list[str], **columns: Any) -> list[float | None]:
        return [None if "7" in each else 1.0 for each in completions]

    def length(completions: list[str], **columns: Any) -> list[float | None]:
        return [None if "7" in each or "8" in each else float(len(each)) for each in completions]

    trainer = build(reward=[sevens, length], reward_weights=[2.0, 0.5], data=addition_prompts(32))
    trainer.train()
    rewards = trainer.baseline.given[0]["rewards"]
    texts = trainer.last_rollouts["completions"]
    expected = [float("nan") if "7" in each else 2.0 if "8" in each else 2.0 + 0.5 * len(each) for each in texts]
    assert_close(rewards, torch.tensor(expected, dtype=torch.float64), equal_nan=True)
    ungradable = rewards.isnan()
    assert ungradable.any()
    assert (trainer.scored[0]["advantages"][ungradable] == 0).all()


def test_prompt_ids_do_not_depend_on_the_order_of_keys():
    assert prompt_id([{"role": "user", "content": "1"}]) == prompt_id([{"content": "1", "role": "user"}])
    assert prompt_id("1") != prompt_id("2")
    assert completion_text([{"role": "assistant", "content": "4"}, {"role": "assistant", "content": None}]) == "4"


# What comes back.


def test_training_and_tables_get_the_advantages_of_the_baseline(build):
    trainer = build()
    trainer._logs["advantages"] = deque()  # unbounded, so that TRL's own would show
    trainer.train()
    advantages = trainer.baseline.gave[-1].advantages
    assert advantages.abs().max() > 0.01
    assert_close(trainer.scored[-1]["advantages"], advantages.float())
    assert_close(torch.tensor(list(trainer._logs["advantages"])), advantages.float())
    assert trainer.last_rollouts["advantages"] == advantages.tolist()
    assert {len(column) for name, column in trainer.last_rollouts.items() if name != "step"} == {len(advantages)}


def test_metrics_of_the_baseline_reach_the_log(build):
    trainer = build()
    trainer.train()
    logged = set().union(*(set(entry) for entry in trainer.state.log_history))
    assert set(trainer.baseline.gave[0].metrics) | {"poise/extra_forward"} <= logged


def test_evaluation_leaves_the_baseline_alone(build):
    trainer = build(per_device_eval_batch_size=16, named={"eval_dataset": addition_prompts(16)})
    trainer.train()
    steps, rollouts = len(trainer.baseline.given), trainer.last_rollouts
    logged = trainer.evaluate()
    assert len(trainer.baseline.given) == steps
    assert trainer.last_rollouts is rollouts
    assert not [name for name in logged if "poise/" in name]


# Conformance: the recorded case.

RECORD_ANEW = "if the recipe was meant to change, run `python tests/engines/conformance.py`"


def replay(build: Callable[..., RecordedTrainer], **options: Any) -> RecordedTrainer:
    steps = recorded_steps()
    current = iter(steps)
    playing = [steps[0]]

    def rollouts(prompts: list[str], trainer: Any) -> dict[str, Any]:
        playing[0] = next(current)
        assert prompts == playing[0].prompts
        return {
            "prompt_ids": playing[0].prompt_ids,
            "completion_ids": playing[0].completion_ids,
            "logprobs": None,
        }

    trainer = build(
        model=recorded_policy(),
        reward=lambda **columns: playing[0].rewards,
        data=Dataset.from_list(
            [
                {"prompt": prompt, "domain": domain}
                for step in steps
                for prompt, domain in list(zip(step.prompts, step.domains, strict=True))[::2]
            ]
        ),
        shuffle_dataset=False,
        layers=LAYERS,
        named={"rollout_func": rollouts},
        **options,
    )
    trainer.train()
    return trainer


def test_library_gives_the_recorded_advantages():
    steps = recorded_steps()
    for found, step in zip(library_advantages(steps), steps, strict=True):
        assert_close(found, step.advantages, atol=1e-6, rtol=0, msg=lambda text: f"{text}\n{RECORD_ANEW}")


@pytest.mark.parametrize(
    "options",
    [
        {"per_device_train_batch_size": 8, "steps_per_generation": 2, "max_steps": 4},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 4},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "steps_per_generation": 4, "max_steps": 2},
    ],
    ids=["minibatches", "accumulation", "extra forward"],
)
def test_engine_gives_the_recorded_features_and_the_library_s_advantages(build, options):
    trainer = replay(build, **options)
    steps = recorded_steps()
    assert len(trainer.scored) == len(steps)
    for given, scored, step, advantages in zip(
        trainer.baseline.given, trainer.scored, steps, library_advantages(steps), strict=True
    ):
        assert_features_close(given["features"], step.features)
        assert_close(given["weights"], step.weights, atol=1e-4, rtol=1e-5)
        assert_close(scored["advantages"].double(), advantages, atol=1e-6, rtol=0)


# Which pass is the behaviour pass.


def test_adapter_reference_pass_is_not_taken_for_the_policy(build):
    peft = pytest.importorskip("peft")
    adapter = peft.LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = build(layers=[2], beta=0.05, named={"peft_config": adapter})
    trainer.train()
    features, _ = recomputed(trainer, 0, layers=[2])
    assert_features_close(trainer.baseline.given[0]["features"], features)
    with trainer.accelerator.unwrap_model(trainer.model).disable_adapter():
        reference, _ = recomputed(trainer, 0, layers=[2])
    assert (features.completion - reference.completion).abs().max() > 0.01  # the two passes do differ


def test_pass_of_a_reference_model_is_not_looked_at(build):
    trainer = build(beta=0.05)
    trainer.train()
    assert trainer.ref_model is not None
    assert metric(trainer, "poise/extra_forward") == [0.0]
    features, _ = recomputed(trainer, 0, layers=[2])
    assert_features_close(trainer.baseline.given[0]["features"], features)


def test_extra_forward_is_made_when_unavoidable_counted_and_said_once(build, caplog):
    trainer = build(steps_per_generation=1, max_steps=3)
    with caplog.at_level(logging.WARNING, logger="poise"):
        trainer.train()
    assert metric(trainer, "poise/extra_forward") == [1.0, 1.0, 1.0]
    assert sum("one more forward pass" in record.message for record in caplog.records) == 1
    features, _ = recomputed(trainer, 2, layers=[2])
    assert_features_close(trainer.baseline.given[2]["features"], features)


def test_vllm_correction_pass_serves_without_an_extra_forward(build, monkeypatch):
    class Sampler:
        def __init__(self, **named: Any) -> None: ...

        def sync_weights(self) -> None: ...

        def generate(self, prompts: list[list[int]], **named: Any) -> Any:
            completions = [[3 + (len(each) + i) % 9, 5, 1] for i, each in enumerate(prompts)]
            return None, completions, [[[-2.0]] * 3 for _ in completions], None

    monkeypatch.setattr(trl.trainer.grpo_trainer, "VLLMGeneration", Sampler)
    trainer = build(use_vllm=True, steps_per_generation=1, poise_feature_pass="require_free")
    trainer.train()
    assert metric(trainer, "poise/extra_forward") == [0.0, 0.0]
    features, _ = recomputed(trainer, 0, layers=[2])
    assert_features_close(trainer.baseline.given[0]["features"], features)


# Refusals.


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"scale_rewards": "group"}, "holds the rollout that it would divide.* 'none', or 'batch' .*, got 'group'"),
        ({"scale_rewards": True}, "scale_rewards must be 'none', or 'batch'"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "must be 'sum_then_normalize'"),
        ({"num_generations": 1}, "from siblings: num_generations must be at least 2, got 1 .*prompt-only"),
        ({"num_generations": 0}, "num_generations must be at least 1, got 0"),
        ({"preset": "grpo++"}, "grpo\\+\\+"),
        ({"preset_options": {"windw_rows": 3}}, "windw_rows"),
        ({"preset_options": "window_rows=3"}, "must be a mapping or a JSON object, got 'window_rows=3'"),
        ({"scalars": ["answr_length"]}, "got 'answr_length', the closest is 'answer_length'"),
        ({"scalars": ["own:luck"]}, "got 'own:luck'"),
        ({"scalars": ["answer_length"], "preset": "rloo"}, "preset 'rloo' has the fields kind; got 'scalars'"),
        (
            {"preset": "same-rollout"},
            "the baseline 'same-rollout' is a rollout's own value: .* no baseline to train with",
        ),
        (
            {"preset": "paper", "preset_options": {"cross_rollout": False}},
            "the baseline 'paper' is a rollout's own value",
        ),
        ({"loss_type": "ppo"}, "loss_type must be one of"),
        ({"update_share": 0.0}, "update_share must lie above 0 and be at most 1, got 0"),
        ({"update_share": 1.5}, "update_share must lie above 0 and be at most 1, got 1.5"),
        ({"update_share": 0.5, "loss_type": "dapo"}, "a constant normaliser, got loss_type='dapo'"),
        ({"update_share": 0.5, "beta": 0.1}, "a term of the loss without them would be wrong, got beta=0.1"),
        ({"update_share": 0.5, "top_entropy_quantile": 0.2}, "got top_entropy_quantile=0.2"),
        ({"pool_tokens": 0}, "got pool_tokens=0"),
        ({"poise_feature_pass": "free"}, "must be 'auto' or 'require_free', got 'free'"),
        ({"poise_feature_pass": "require_free", "steps_per_generation": 1}, "needs the forward pass that TRL makes"),
    ],
)
def test_config_refuses(tmp_path, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        PoiseConfig(str(tmp_path), bf16=False, use_cpu=True, **options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"layers": [4]}, "layer 4 is out of range: this model has layers 0 to 3"),
        (
            {"update_share": 0.5, "data": Dataset.from_list([{"prompt": "1", "image": "1"}])},
            "update_share below 1 cannot draw rollouts that have images",
        ),
    ],
)
def test_trainer_refuses(build, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        build(**options)


def test_trainer_refuses_a_plain_config(tmp_path, policy_folder):
    with pytest.raises(TypeError, match="needs a PoiseConfig as args, got a GRPOConfig"):
        PoiseTrainer(policy_folder, share_of_digits, GRPOConfig(str(tmp_path), bf16=False, use_cpu=True))


def test_default_config_is_a_case_without_an_extra_forward(tmp_path):
    for accumulation in (1, 3):
        args = PoiseConfig(str(tmp_path), bf16=False, use_cpu=True, gradient_accumulation_steps=accumulation)
        assert args.behaviour_pass_is_made
        assert args.sources_of_bias == []
        assert args.disable_dropout
        assert args.num_generations == 2


@pytest.mark.parametrize(
    ("options", "source"),
    [
        ({"preset": "group-mean"}, "the baseline 'group-mean' depends on the rollout"),
        (
            {"preset": "same-rollout", "allow_biased_control": True},
            "the baseline 'same-rollout' depends on the rollout",
        ),
        ({"loss_type": "dapo"}, "loss_type 'dapo' divides by a number of sampled tokens"),
        ({"loss_type": "grpo"}, "loss_type 'grpo' divides every rollout by its own length"),
    ],
)
def test_sources_of_bias_are_said_once_at_the_start(build, caplog, options, source):
    with caplog.at_level(logging.INFO, logger="poise"):
        build(**options).train()
    said = [record.message for record in caplog.records if "unbiased" in record.message]
    assert len(said) == 1
    assert source in said[0]


def test_options_are_parsed_from_a_command_line(tmp_path):
    line = f"--output_dir {tmp_path} --use_cpu --bf16 False --layers 1 3 --loss_type dapo --temperature 0.5".split()
    (args,) = HfArgumentParser(PoiseConfig).parse_args_into_dataclasses(
        [*line, "--preset_options", '{"window_rows": 8}']
    )
    assert args.layers == [1, 3]
    assert args.resolved_preset == poise.preset("poise", window_rows=8)


def test_quickstart_trains(tmp_path, policy_folder):
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "trl_quickstart.py"))
    trainer = example["main"](policy_folder, str(tmp_path), max_steps=2, bf16=False, use_cpu=True, save_strategy="no")
    assert len(trainer.last_rollouts["rewards"]) == 16


@pytest.mark.slow
def test_step_sizes_are_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "trl_step_size.py"))
    table = example["main"](batches=1, filling=1)
    divided, plain = table["GRPO / std, G = 2"], table["GRPO, not divided, G = 2"]
    # Rewards are 0 or 1, so every pair that differs has a standard deviation of the square root of 1/2.
    assert divided[0] / plain[0] == pytest.approx(2**0.5, rel=1e-3)
    assert divided[1] / plain[1] == pytest.approx(2**0.5, rel=1e-3)
    assert table["poise, G = 2"][1] > 0


def test_what_people_read_of_a_batch_is_kept_with_it(build):
    def short(completions: list[str], **columns: Any) -> list[float | None]:
        return [None if "7" in each else float(len(each)) for each in completions]

    data = addition_prompts(32)
    data = data.add_column("answer", [f"gold of {row['prompt']}" for row in data])
    trainer = build(reward=[short, lambda completions, **_: [1.0] * len(completions)], data=data)
    trainer.train()
    kept, tokenizer = trainer.last_rollouts, trainer.processing_class
    assert kept["answers"] == [f"gold of {prompt}" for prompt in kept["prompts"]]
    for text, parts, reward in zip(kept["completions"], kept["parts"], kept["rewards"], strict=True):
        assert parts == ({"<lambda>": 1.0} if "7" in text else {"short": len(text), "<lambda>": 1.0})
        assert sum(parts.values()) == reward
    scored = trainer.scored[-1]["completion_ids"]
    ids = [row[: int(n)].tolist() for row, n in zip(scored, kept["completion_lengths"], strict=True)]
    ends = [*trainer.eos_token_ids, tokenizer.pad_token_id]  # as TRL counts
    assert kept["truncated"] == [each[-1] not in ends for each in ids]
    assert set(kept["truncated"]) == {True, False}
    for (lengths, entropies), text, each in zip(kept["token_entropies"], kept["completions"], ids, strict=True):
        assert (sum(lengths), len(lengths), len(entropies)) == (len(text), len(each), len(each))
        assert min(entropies) >= 0
    assert all(weight > 0 for weight in kept["weights"])
    logged = {name for entry in trainer.state.log_history for name in entry}
    assert {f"poise/seconds_{phase}" for phase in ("sampling", "rewards", "features", "baseline")} <= logged
    assert kept_rollouts.token_entropies(tokenizer, ids[:2], torch.ones(2, 9), most_tokens=len(ids[0]))[1] is None
