"""What is a rollout's reward, and what if it cannot be told?

The rule: code that may hang or crash runs in a worker that is killed when its time is up; a rollout whose worker fails
is ungradable (NaN), which is neither right nor wrong, and is counted by cause. Workers import this package: what needs
a host's data sets or models (`poise.rewards.graded_task`) is not offered here.
"""

from poise.rewards.grading import Grader, TaskReward, completion_text, problem_columns
from poise.rewards.verifiers import FULL_MARKS, VERIFIERS, Verdict, Verifier, final_answer, graded, verdict

__all__ = [
    "FULL_MARKS",
    "VERIFIERS",
    "Grader",
    "TaskReward",
    "Verdict",
    "Verifier",
    "completion_text",
    "final_answer",
    "graded",
    "problem_columns",
    "verdict",
]
