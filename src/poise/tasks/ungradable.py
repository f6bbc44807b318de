"""The file of rollouts that could not be graded, with their causes.

What leaves the training because nothing could be said about it is kept with its text, in a file that cannot
grow without bound.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from poise.tasks.verifiers import Verdict

MOST_LINES = 1_000
"""Lines of the file; what comes later is counted in the metrics alone."""
LONGEST_TEXT = 20_000
"""Characters of a prompt, a completion or an answer that are kept."""


class UngradableFile:
    """Ungradable rollouts, one JSON object a line: step (the first that is trained on them), cause, prompt, completion,
    answer.

    Args:
        path: Where; the file appears with its first line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(
        self,
        verdicts: Sequence[Verdict],
        *,
        step: int,
        prompts: Sequence[str],
        completions: Sequence[str],
        answers: Sequence[str],
    ) -> None:
        """Keep the ungradable ones of a batch, as far as there is room."""
        kept = [
            {"step": step, "cause": verdict.cause}
            | {
                "prompt": prompt[:LONGEST_TEXT],
                "completion": completion[:LONGEST_TEXT],
                "answer": answer[:LONGEST_TEXT],
            }
            for verdict, prompt, completion, answer in zip(verdicts, prompts, completions, answers, strict=True)
            if math.isnan(verdict.reward)
        ]
        if kept:
            with self.path.open("a+") as file:
                file.seek(0)
                room = max(0, MOST_LINES - sum(1 for _ in file))
                file.writelines(json.dumps(each) + "\n" for each in kept[:room])
