"""The conformance case of every engine: two recorded steps of rollouts, from tokens to advantages.

The rule: an engine is given the recorded weights, tokens, rewards and domains, and must arrive at the recorded features
and score-norm weights, and so at the advantages that the library alone computes from them. The rollouts hold what goes
wrong first: padding on both sides, a prompt drawn twice, completions with and without an end of thinking, a completion
of one token, an ungradable reward.

`python tests/engines/conformance.py` records the case anew: after a change of the recipe, never to silence a failure.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

import poise
from poise.features.rollout_features import Features, mean_entropies, reasoning_mask, score_norm_weights

DATA = Path(__file__).parent / "data"
PRESET = "poise"
LAYERS = [0, 1]
POOL_TOKENS = 3
TEMPERATURE = 0.8
END_OF_THINKING = "=>"
STEPS = 2
PROMPTS_PER_STEP = 8
ROLLOUTS_PER_PROMPT = 2
CHARACTERS = "0123456789+-=>#ab "


def character_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token a character, and none for characters outside its vocabulary."""
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<eos>", "<unk>", *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def random_policy(*, layers: int = 4, width: int = 32, seed: int = 0) -> Qwen3ForCausalLM:
    """A random Qwen3 over the tokenizer's characters, with logits spread enough for entropies to differ."""
    config = Qwen3Config(
        vocab_size=len(CHARACTERS) + 3,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=width // 2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = Qwen3ForCausalLM(config)
        for parameter in policy.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.3)
    return policy.eval()


@dataclass(frozen=True)
class RecordedStep:
    """One generation batch. `None` in `rewards`: ungradable. Lists have one entry a rollout, siblings adjacent."""

    prompts: list[str]
    domains: list[str]
    rewards: list[float | None]
    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    features: Features
    weights: Tensor
    advantages: Tensor

    @property
    def reward_tensor(self) -> Tensor:
        return torch.tensor([float("nan") if each is None else each for each in self.rewards], dtype=torch.float64)


def recorded_policy() -> Qwen3ForCausalLM:
    """The policy that sampled the recorded rollouts."""
    policy = random_policy(layers=3, width=16)
    policy.load_state_dict(load_file(DATA / "policy.safetensors"))
    return policy


def recorded_steps() -> list[RecordedStep]:
    """The recorded steps, in order."""
    tensors = load_file(DATA / "conformance.safetensors")
    steps = []
    for index, plain in enumerate(json.loads((DATA / "conformance.json").read_text())["steps"]):
        named = {key.split(".")[1]: value for key, value in tensors.items() if key.startswith(f"step{index}.")}
        features = Features(*(named.pop(name) for name in ("prompt", "completion", "entropies", "missing")))
        steps.append(RecordedStep(**plain, features=features, **named))
    return steps


def library_advantages(steps: list[RecordedStep]) -> list[Tensor]:
    """What `poise.OnlineBaseline` alone makes of the recorded features, rewards and weights, step by step."""
    baseline = poise.OnlineBaseline(poise.preset(PRESET))
    return [
        baseline.step(
            each.features, each.reward_tensor, prompts=each.prompts, domains=each.domains, weights=each.weights
        ).advantages
        for each in steps
    ]


def rollout_features(
    policy: Any,
    prompt_ids: list[int],
    completion_ids: list[int],
    *,
    layers: list[int],
    pool_tokens: int,
    temperature: float,
    end_of_thinking_ids: list[int],
    loss_normalization: str = "constant",
) -> tuple[Features, Tensor]:
    """Features and weight of one rollout the slow way: alone, unpadded, from all hidden states and the full logits."""
    with torch.no_grad():
        output = policy(torch.tensor([prompt_ids + completion_ids]), output_hidden_states=True)
    end = len(prompt_ids)
    logprobs = (output.logits[0, end - 1 : -1].float() / temperature).log_softmax(dim=1)
    entropies = -(logprobs.exp() * logprobs).sum(dim=1)[None]
    tokens = torch.tensor([completion_ids])
    counted = torch.ones_like(tokens, dtype=torch.bool)
    reasoning, answer = reasoning_mask(tokens, counted, end_of_thinking_ids=end_of_thinking_ids)
    states = torch.cat([output.hidden_states[layer + 1][0].float() for layer in layers], dim=1)
    prompt, thought = states[:end], states[end:][reasoning[0]]
    missing = torch.tensor([[False, False, not bool(reasoning.any()), not bool(answer.any())]])
    features = Features(
        prompt[-pool_tokens:].mean(dim=0)[None],
        thought[-pool_tokens:].mean(dim=0)[None],
        mean_entropies(entropies, counted, reasoning, answer),
        missing,
    )
    sampled = logprobs.gather(1, tokens.T).T
    return features, score_norm_weights(sampled, entropies, counted, loss_normalization=loss_normalization)


def stacked(rows: list[tuple[Features, Tensor]]) -> tuple[Features, Tensor]:
    """Rows of `rollout_features` as one batch."""
    fields = [
        torch.cat([getattr(row, name) for row, _ in rows]) for name in ("prompt", "completion", "entropies", "missing")
    ]
    return Features(*fields), torch.cat([weight for _, weight in rows])


def record() -> None:
    """Draw the rollouts and write the case."""
    generator = torch.Generator().manual_seed(0)
    tokenizer, policy = character_tokenizer(), random_policy(layers=3, width=16)
    end_ids = tokenizer.encode(END_OF_THINKING, add_special_tokens=False)
    steps: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    baseline = poise.OnlineBaseline(poise.preset(PRESET))
    for index in range(STEPS):
        numbers = torch.randint(0, 200, (PROMPTS_PER_STEP, 2), generator=generator).tolist()
        numbers[-1] = numbers[0]  # one prompt drawn twice
        prompts = [f"{a}+{b}=" for a, b in numbers for _ in range(ROLLOUTS_PER_PROMPT)]
        domains = ["even" if a % 2 == 0 else "odd" for a, _ in numbers for _ in range(ROLLOUTS_PER_PROMPT)]
        lengths = torch.randint(1, 11, (len(prompts),), generator=generator).tolist()
        lengths[3] = 1
        completion_ids = [torch.randint(3, 21, (n,), generator=generator).tolist() for n in lengths]
        for row in range(0, len(prompts), 3):
            completion_ids[row][len(completion_ids[row]) // 2 :] = [*end_ids, *completion_ids[row][:2], 1]
        rewards: list[float | None] = torch.rand(len(prompts), generator=generator).round(decimals=2).tolist()
        rewards[5] = None
        prompt_ids = [tokenizer.encode(each, add_special_tokens=False) for each in prompts]
        rows = [
            rollout_features(
                policy,
                *ids,
                layers=LAYERS,
                pool_tokens=POOL_TOKENS,
                temperature=TEMPERATURE,
                end_of_thinking_ids=end_ids,
            )
            for ids in zip(prompt_ids, completion_ids, strict=True)
        ]
        features, weights = stacked(rows)
        plain = {
            "prompts": prompts,
            "domains": domains,
            "rewards": rewards,
            "prompt_ids": prompt_ids,
            "completion_ids": completion_ids,
        }
        steps.append(plain)
        step = RecordedStep(**plain, features=features, weights=weights, advantages=torch.empty(0))
        advantages = baseline.step(
            features, step.reward_tensor, prompts=prompts, domains=domains, weights=weights
        ).advantages
        for name in ("prompt", "completion", "entropies", "missing"):
            tensors[f"step{index}.{name}"] = getattr(features, name).contiguous()
        tensors[f"step{index}.weights"], tensors[f"step{index}.advantages"] = weights, advantages
    DATA.mkdir(exist_ok=True)
    save_file(tensors, DATA / "conformance.safetensors")
    save_file({k: v.contiguous() for k, v in policy.state_dict().items()}, DATA / "policy.safetensors")
    (DATA / "conformance.json").write_text(json.dumps({"steps": steps}) + "\n")


if __name__ == "__main__":
    record()
