"""A problem, wherever it comes from.

A problem is plain text, so that it travels unchanged into a data set of the host, a worker and a file.
A hash of its prompt says on which side of the split it lies: no prompt is ever both trained on and held out.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

HELD_OUT_SHARE = 5
"""One prompt in five is held out."""

Messages = list[dict[str, str]]
"""Turns of a chat, each with its "role" and its "content"."""


@dataclass(frozen=True)
class Problem:
    """A prompt, the text of its answer, the name of its domain, and how a completion is graded.

    Attributes:
        prompt: The question as text.
        answer: The gold answer; empty where none is known.
        domain: Accuracy and baselines are reported by domain.
        verifier: A name out of `poise.tasks.verifiers.VERIFIERS`.
        details: What the verifier needs beyond the answer, as JSON text.
        messages: The question as a chat, where the source gives one; the prompt is then the text of its turns.
        columns: Everything else that the source has about the problem, for reward functions of the user.
    """

    prompt: str
    answer: str
    domain: str
    verifier: str = "embedded"
    details: str = ""
    messages: Messages | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)

    def asked(self, *, as_chat: bool) -> str | Messages:
        """The prompt in the form that a policy takes: messages for one with a chat template, else text."""
        if not as_chat:
            return self.prompt
        return self.messages if self.messages is not None else [{"role": "user", "content": self.prompt}]


def prompt_text(prompt: str | Messages) -> str:
    """A prompt as text; of messages, the contents one under another."""
    return prompt if isinstance(prompt, str) else "\n\n".join(message["content"] for message in prompt)


@runtime_checkable
class ProblemSource(Protocol):
    """Draws problems: the same ones for the same arguments."""

    def __call__(self, num: int, *, seed: int, split: str = "train") -> list[Problem]:
        """Up to `num` problems of one side of the split ("train" or "heldout"; "all" too where problems are finite)."""
        ...


def split_of(prompt: str) -> str:
    """The side of the split on which a prompt lies, always and everywhere the same."""
    return "heldout" if hashlib.sha256(prompt.encode()).digest()[0] % HELD_OUT_SHARE == 0 else "train"
