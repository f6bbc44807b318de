"""poise in somebody's own REINFORCE loop: `python examples/own_loop.py`, half a minute on a CPU.

A tiny policy learns to answer a digit with its successor (0 for 9), two rollouts a prompt, no critic, no groups. What
poise adds to the loop is marked: hidden states are read in the log-prob forward that the loop makes anyway.
"""

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

import poise

DIGITS, LENGTH = 10, 2  # tokens 0-9 are digits, 10 asks, 11 pads


def toy_policy() -> Qwen3ForCausalLM:
    """Two layers, random weights."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": DIGITS + 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    return Qwen3ForCausalLM(Qwen3Config(**sizes, **heads, eos_token_id=None, pad_token_id=11))


def train(num_steps: int = 150, *, preset: str = "poise", seed: int = 0) -> list[float]:
    """Train and return each step's mean reward."""
    torch.manual_seed(seed)
    policy = toy_policy()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    baseline = poise.OnlineBaseline(poise.preset(preset))  # <- poise
    curve = []
    for _ in range(num_steps):
        digits = torch.randint(DIGITS, (32,)).repeat_interleave(2)  # two rollouts a prompt
        prompts = torch.stack([digits, torch.full_like(digits, DIGITS)], dim=1)
        with torch.no_grad():
            ids = policy.generate(
                prompts, attention_mask=torch.ones_like(prompts), do_sample=True, top_k=0, max_new_tokens=LENGTH
            )
        rewards = (ids[:, 2] == (digits + 1) % DIGITS).double()

        prompt_mask = torch.tensor([[True, True] + [False] * LENGTH]).expand(len(ids), -1)
        with poise.capture_hidden_states(policy, prompt_mask, ~prompt_mask, layers=[0]) as capture:  # <- poise
            logits = policy(ids).logits[:, 1:-1]
        logprobs = logits.log_softmax(-1).gather(2, ids[:, 2:, None])[:, :, 0]
        entropies = poise.token_entropies(logits.detach())  # <- poise
        weights = poise.score_norm_weights(logprobs.detach(), entropies, ~prompt_mask[:, 2:])  # <- poise
        step = baseline.step(  # <- poise
            capture.features(entropies), rewards, prompts=digits.tolist(), weights=weights
        )

        loss = -(step.advantages[:, None] * logprobs).sum() / len(ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(float(rewards.mean()))
    return curve


if __name__ == "__main__":
    for name in ("poise", "rloo", "none"):
        rewards = train(preset=name)
        print(f"{name:6} mean reward of the last 20 steps: {sum(rewards[-20:]) / 20:.2f}")
