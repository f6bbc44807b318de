"""An oracle of what is read of rollouts that others have a part in: one unpadded sequence a rollout."""

from typing import Any

import torch
from recording import RecordedTrainer
from torch.testing import assert_close

import poise
from poise.features.rollout_features import mean_entropies, reasoning_mask, score_norm_weights

POOL = 3


def oracle(trainer: RecordedTrainer, batch: int = 0) -> list[dict[str, Any]]:
    """Features and weight of every rollout: alone, unpadded, from all hidden states, the policy's own tokens alone."""
    scored, policy = trainer.scored[batch], trainer.accelerator.unwrap_model(trainer.model).eval()
    rows = []
    for row, (ids, own) in enumerate(trainer.kept[batch]):
        prompt = scored["prompt_ids"][row][scored["prompt_mask"][row].bool()].tolist()
        with torch.no_grad():
            output = policy(
                **(trainer.alone(row, ids) or {"input_ids": torch.tensor([prompt + ids])}), output_hidden_states=True
            )
        mask = torch.tensor([own], dtype=torch.bool)
        logprobs = (output.logits[0, len(prompt) - 1 : -1] / trainer.args.temperature).log_softmax(dim=1)
        entropies = -(logprobs.exp() * logprobs).sum(dim=1)[None]
        tokens = torch.tensor([ids])
        reasoning, answer = reasoning_mask(tokens, mask, end_of_thinking_ids=trainer._end_of_thinking_ids)
        states = output.hidden_states[3][0]
        thought = states[len(prompt) :][reasoning[0]][-POOL:]
        rows.append(
            {
                "prompt": states[: len(prompt)][-POOL:].mean(dim=0),
                "completion": thought.mean(dim=0) if len(thought) else torch.zeros_like(states[0]),
                "entropies": mean_entropies(entropies, mask, reasoning, answer)[0],
                "weights": score_norm_weights(logprobs.gather(1, tokens.T).T, entropies, mask)[0],
            }
        )
    return rows


class Kept(RecordedTrainer):
    """Keeps what was generated: ids, and which of them are the policy's own."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        self.kept: list[list[tuple[list[int], list[int]]]] = []
        super().__init__(*positional, **named)

    def alone(self, row: int, ids: list[int]) -> dict[str, torch.Tensor]:
        """The inputs of a rollout by itself where they are more than its tokens."""
        return {}

    def _generate(self, prompts: list[Any]) -> Any:
        generated = super()._generate(prompts)
        own = generated[2] or [[1] * len(ids) for ids in generated[1]]
        self.kept.append([(list(ids), list(mask)) for ids, mask in zip(generated[1], own, strict=True)])
        return generated


def assert_read_as_the_oracle_does(trainer: Kept) -> None:
    given, rows = trainer.baseline.given[0], oracle(trainer)
    for name in ("prompt", "completion", "entropies"):
        expected = torch.stack([row[name] for row in rows]).float()
        assert_close(getattr(given["features"], name), expected, atol=2e-5, rtol=2e-5)
    assert_close(given["weights"], torch.stack([row["weights"] for row in rows]), atol=1e-4, rtol=1e-4)
    advantages = poise.OnlineBaseline(trainer.args.resolved_preset).step(**given).advantages
    assert_close(trainer.scored[0]["advantages"].double(), advantages, atol=1e-6, rtol=0)
