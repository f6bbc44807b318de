"""poise in somebody's own REINFORCE loop: `python examples/own_loop.py`, two minutes on a CPU, torch alone.

A tiny policy learns to answer a digit with its successor (0 for 9), two rollouts a prompt, no critic, no groups.
Rewards are noisy, and some prompts pay more than others whatever the answer: what reward was to be expected differs
between prompts, and that is where a baseline matters. What poise adds to the loop is marked: hidden states are read in
the log-prob forward that the loop makes anyway.
"""

import torch
from torch import Tensor, nn

import poise

DIGITS = 10  # tokens 0 to 9 are digits, token 10 asks


class ToyPolicy(nn.Module):
    """Two decoder blocks of width 32 with random weights; logits for every position."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(DIGITS + 1, 32)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.head = nn.Linear(32, DIGITS)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (rows, positions, DIGITS) of token ids (rows, positions)."""
        states = self.embedding(ids)
        unseen = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        for layer in self.layers:
            states = layer(states, src_mask=unseen, is_causal=True)
        return self.head(states)


def train(num_steps: int = 200, *, preset: str = "poise", seed: int = 0) -> list[float]:
    """Train and return each step's share of right answers."""
    torch.manual_seed(seed)
    policy = ToyPolicy()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    baseline = poise.OnlineBaseline(poise.preset(preset))  # <- poise
    bonus = torch.linspace(0, 3, DIGITS)[torch.randperm(DIGITS)]
    curve = []
    for _ in range(num_steps):
        digits = torch.randint(DIGITS, (32,)).repeat_interleave(2)  # two rollouts a prompt
        prompts = torch.stack([digits, torch.full_like(digits, DIGITS)], dim=1)
        with torch.no_grad():
            answers = torch.distributions.Categorical(logits=policy(prompts)[:, -1]).sample()
        right = (answers == (digits + 1) % DIGITS).double()
        rewards = right + bonus[digits] + 0.5 * torch.randn(len(right))

        ids = torch.cat([prompts, answers[:, None]], dim=1)
        prompt_mask = torch.tensor([[True, True, False]]).expand(len(ids), -1)
        with poise.capture_hidden_states(policy, prompt_mask, ~prompt_mask, layers=[0]) as capture:  # <- poise
            logits = policy(ids)[:, 1:-1]
        logprobs = logits.log_softmax(-1).gather(2, answers[:, None, None])[:, :, 0]
        entropies = poise.token_entropies(logits.detach())  # <- poise
        weights = poise.score_norm_weights(logprobs.detach(), entropies, ~prompt_mask[:, 2:])  # <- poise
        step = baseline.step(  # <- poise
            capture.features(entropies), rewards, prompts=digits.tolist(), weights=weights
        )

        loss = -(step.advantages[:, None] * logprobs).sum() / len(ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(float(right.mean()))
    return curve


if __name__ == "__main__":
    for name in ("poise", "rloo", "none"):
        shares = [sum(train(preset=name, seed=seed)[-20:]) / 20 for seed in range(3)]
        print(f"{name:6} right answers in the last 20 steps, three seeds: " + ", ".join(f"{s:.2f}" for s in shares))
