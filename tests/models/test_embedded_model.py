"""The packaged policy: small, loadable by plain transformers, and neither ignorant nor finished."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from poise.models.embedded import character_tokenizer, embedded_model_path, load_embedded_model, untrained_model
from poise.tasks.embedded import END_OF_THINKING, FAMILIES, is_correct, problems


@pytest.fixture(scope="module")
def policy():
    return load_embedded_model()


def completions(model, tokenizer, prompts, *, seed):
    torch.manual_seed(seed)
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    ids = model.generate(**batch, do_sample=True, max_new_tokens=64)
    return tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def test_the_model_is_a_small_tied_float32_qwen3(policy):
    model, _ = policy
    assert model.config.model_type == "qwen3"
    assert sum(weight.numel() for weight in model.parameters()) <= 1_100_000
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not model.training


def test_the_folder_is_a_small_checkpoint_without_pickles():
    files = {path.name: path.stat().st_size for path in embedded_model_path().iterdir() if path.is_file()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= files.keys()
    assert sum(files.values()) < 4_000_000
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]


def test_the_tokenizer_is_the_one_the_code_builds(policy):
    _, tokenizer = policy
    assert tokenizer.get_vocab() == character_tokenizer().get_vocab()
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.padding_side == "left"


def test_every_prompt_and_answer_survives_the_tokenizer(policy):
    _, tokenizer = policy
    for each in problems(1000, seed=0):
        for text in (each.prompt, END_OF_THINKING + each.answer):
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_the_end_of_thinking_is_one_token_that_decoding_keeps(policy):
    _, tokenizer = policy
    ids = tokenizer(f"1{END_OF_THINKING}1")["input_ids"]
    assert len(ids) == 3
    assert ids[1] == tokenizer.convert_tokens_to_ids(END_OF_THINKING)
    assert END_OF_THINKING in tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True)
    assert tokenizer.eos_token not in tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True)


def test_generation_draws_from_the_whole_distribution_and_ends_at_the_end_token(policy):
    model, tokenizer = policy
    settings = model.generation_config
    assert (settings.eos_token_id, settings.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert settings.temperature in (None, 1.0)
    assert settings.top_p in (None, 1.0)
    assert not settings.top_k


def test_padding_on_the_left_leaves_the_logits_where_they_are(policy):
    model, tokenizer = policy
    short, long = "sum 1+2<think>", "sum 1+2+3+4+5+6<think>"
    batch = tokenizer([short, long], return_tensors="pt", padding=True)
    positions = (batch["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad():
        alone = model(**tokenizer(short, return_tensors="pt")).logits[0, -1]
        together = model(**batch, position_ids=positions).logits[0, -1]
    torch.testing.assert_close(alone, together, atol=1e-4, rtol=1e-4)


def test_the_policy_has_something_to_learn_and_something_to_build_on(policy):
    model, tokenizer = policy
    asked = problems(300, seed=8, split="heldout")
    texts = completions(model, tokenizer, [each.prompt for each in asked], seed=0)
    right = [is_correct(text, each.answer) for text, each in zip(texts, asked, strict=True)]
    assert 0.25 < sum(right) / len(right) < 0.45
    for domain in FAMILIES:
        share = [correct for correct, each in zip(right, asked, strict=True) if each.domain == domain]
        assert 0.05 < sum(share) / len(share) < 0.7, domain
    skipped = sum(text.startswith(END_OF_THINKING) for text in texts) / len(texts)
    assert 0.1 < skipped < 0.7
    assert sum(END_OF_THINKING in text for text in texts) > 0.95 * len(texts)


def test_an_untrained_policy_is_right_nowhere():
    torch.manual_seed(0)
    tokenizer = character_tokenizer()
    asked = problems(50, seed=8, split="heldout")
    texts = completions(untrained_model(tokenizer).eval(), tokenizer, [each.prompt for each in asked], seed=0)
    assert not any(is_correct(text, each.answer) for text, each in zip(texts, asked, strict=True))


def test_a_plain_load_by_path_gives_float32_that_trains(policy):
    model = AutoModelForCausalLM.from_pretrained(str(embedded_model_path()))
    loss = model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss
    loss.backward()
    assert loss.dtype is torch.float32
    assert all(weight.grad is not None for weight in model.parameters())
