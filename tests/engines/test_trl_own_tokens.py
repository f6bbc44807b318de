"""Agents: rollouts in which tools, environments and rollout functions speak too.

Each case is trained on, and what crossed to the baseline is held against an oracle that builds one unpadded sequence a
rollout and reads the policy's own tokens alone.
"""

from typing import Any

import pytest
import torch
from conformance import CHARACTERS, character_tokenizer, random_policy
from own_tokens_oracle import POOL, Kept, assert_read_as_the_oracle_does
from recording import HOST_CHATTER, metric
from torch.testing import assert_close

from poise.engines.trl.own_tokens import prompt_key

pytestmark = HOST_CHATTER


@pytest.fixture
def kept(build, monkeypatch):
    monkeypatch.setattr("conftest.RecordedTrainer", Kept)
    return lambda **options: build(**({"max_steps": 1, "pool_tokens": POOL, "layers": [2]} | options))


def spoken(own: Any) -> Any:
    """A rollout function: random completions of unlike lengths, with a mask of the policy's own tokens."""

    def rollouts(prompts: list[str], trainer: Any) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(0)
        lengths = torch.randint(2, 12, (len(prompts),), generator=generator).tolist()
        ids = [torch.randint(3, 15, (length,), generator=generator).tolist() for length in lengths]
        prompt_ids = [trainer.processing_class.encode(each, add_special_tokens=False) for each in prompts]
        masks = [own(row, len(each)) for row, each in enumerate(ids)]
        return {
            "prompt_ids": prompt_ids,
            "completion_ids": ids,
            "logprobs": None,
            "env_mask": masks,
            "prompt": ["written over"] * len(prompts),
        }

    return rollouts


MASKS = {
    "all own": lambda row, length: [1] * length,
    "every other": lambda row, length: [(place + row) % 2 for place in range(length)],
    "own at the front alone": lambda row, length: [1] + [0] * (length - 1),
    "one row without any": lambda row, length: [int(row != 3)] * length,
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("options", [{}, {"steps_per_generation": 1}], ids=["free", "extra pass"])
def test_only_tokens_that_the_policy_sampled_are_read(kept, name, options):
    trainer = kept(named={"rollout_func": spoken(MASKS[name])}, **options)
    trainer.train()
    assert_read_as_the_oracle_does(trainer)
    given = trainer.baseline.given[0]
    assert all(each.endswith("=") for each in given["prompts"])
    empty = [row for row, (_, own) in enumerate(trainer.kept[0]) if not any(own)]
    assert given["rewards"].isnan().nonzero().flatten().tolist() == empty == ([3] if name.startswith("one") else [])
    assert metric(trainer, "poise/no_own_tokens_share") == [len(empty) / len(given["rewards"])]
    assert trainer.scored[0]["advantages"][empty].abs().sum() == 0
    assert trainer.last_rollouts["completion_lengths"] == [sum(own) for _, own in trainer.kept[0]]


def test_truncated_completions_leave_the_loss_and_stay_in_the_fit(kept):
    trainer = kept(mask_truncated_completions=True, max_completion_length=5)
    trainer.train()
    assert_read_as_the_oracle_does(trainer)
    in_loss = trainer.scored[0]["completion_mask"].any(dim=1)
    ended = torch.tensor([ids[-1] in (0, 1) for ids, _ in trainer.kept[0]])  # padding or the end
    assert in_loss.tolist() == ended.tolist()
    assert 0 < ended.sum() < len(ended)
    assert (trainer.baseline.given[0]["weights"] > 0).all()
    assert any("how they end" in each for each in trainer.args.sources_of_bias)
    assert all(torch.tensor(metric(trainer, "grad_norm")).isfinite())


# Keys of prompts.


def test_the_key_is_the_row_as_the_data_set_gave_it():
    picture, other = torch.zeros(4).numpy(), torch.ones(4).numpy()
    text, chat = {"prompt": "1+1=", "seed": 1}, {"prompt": [{"role": "user", "content": "1"}]}
    assert prompt_key(text, whole=False) == "1+1="
    assert prompt_key(text, whole=True) != prompt_key(text | {"seed": 2}, whole=True)
    assert prompt_key({"seed": 2}, whole=True) == prompt_key({"seed": 2}, whole=True)
    with_picture = prompt_key(chat | {"image": picture}, whole=False)
    assert with_picture == prompt_key(chat | {"image": picture.copy()}, whole=False)
    assert with_picture != prompt_key(chat | {"image": other}, whole=False)
    assert with_picture != prompt_key(chat, whole=False)


# One rollout a prompt, and scaled rewards.


@pytest.mark.parametrize("preset", ["prompt-only", "none"])
def test_one_rollout_a_prompt_trains(kept, preset):
    trainer = kept(num_generations=1, preset=preset, max_steps=2, steps_per_generation=1)
    trainer.train()
    given = trainer.baseline.given[0]
    assert len(set(given["prompts"])) == len(given["prompts"])
    assert all(scored["advantages"].abs().max() > 0.01 for scored in trainer.scored)
    assert type(trainer.args.num_generations) is int


def test_rewards_are_scaled_by_earlier_steps_alone(kept, tmp_path):
    options = {"scale_rewards": "batch", "steps_per_generation": 1, "max_steps": 3, "save_steps": 2}
    trainer = kept(save_strategy="steps", **options)
    trainer.train()
    rewards, divisors = [], metric(trainer, "poise/reward_scale")
    for given, gave, scored, divisor in zip(
        trainer.baseline.given, trainer.baseline.gave, trainer.scored, divisors, strict=True
    ):
        expected = torch.cat(rewards).std().item() if rewards else 1.0
        assert divisor == pytest.approx(expected, rel=1e-5)
        assert_close(scored["advantages"].double(), gave.advantages / expected, atol=1e-5, rtol=1e-5)
        rewards.append(given["rewards"])
    again = kept(save_strategy="no", **options)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert metric(again, "poise/reward_scale")[-1] == divisors[-1]


def test_numbers_of_dropout_are_zero_in_training(kept, tmp_path):
    policy = random_policy()
    for each in policy.modules():
        if hasattr(each, "attention_dropout"):
            each.attention_dropout = 0.3
    policy.config.attention_dropout = 0.3
    trainer = kept(model=policy)
    found = {each.attention_dropout for each in trainer.model.modules() if hasattr(each, "attention_dropout")}
    assert found == {0.0} == {trainer.model.config.attention_dropout}
    trainer.train()
    assert_read_as_the_oracle_does(trainer)


# What is doubtful is said before the first batch.


def test_doubtful_models_are_met_with_a_sentence(kept, caplog):
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = character_tokenizer()
    config = GPT2Config(vocab_size=len(CHARACTERS) + 3, n_embd=16, n_layer=4, n_head=2, n_positions=64)
    model = GPT2LMHeadModel(config)
    torch.nn.init.normal_(model.transformer.wpe.weight, std=1.0)
    model.generation_config.min_p = 0.1
    kept(model=model, named={"processing_class": tokenizer})
    assert "gpt2 counts the positions of padding in training" in caplog.text
    assert "change what is sampled (min_p=0.1)" in caplog.text
    caplog.clear()
    kept()
    assert "counts the positions" not in caplog.text
    assert "change what is sampled" not in caplog.text


def test_a_reference_that_never_was_is_refused(kept):
    peft = pytest.importorskip("peft")
    adapter = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights="olora")
    with pytest.raises(ValueError, match=r"started by init_lora_weights='olora' .* beta=0.1 would hold the policy to"):
        kept(named={"peft_config": adapter}, beta=0.1)


def test_a_frozen_model_is_refused(kept):
    with pytest.raises(ValueError, match="nothing in the model can be trained"):
        kept(model=random_policy().requires_grad_(False)).train()
