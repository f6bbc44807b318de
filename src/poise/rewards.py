"""The public names of grading: verifiers, verdicts, and the workers that they run in.

Code that may hang or crash runs in a worker that is killed when its time is up. A rollout whose worker fails is
ungradable (NaN), which is neither right nor wrong, and is counted by cause. Workers import this module: what needs a
host's data sets or models (`poise.tasks.graded_task`) is not offered here.
"""

from poise.tasks.grading import Grader, TaskReward, completion_text, problem_columns
from poise.tasks.verifiers import FULL_MARKS, VERIFIERS, Verdict, Verifier, final_answer, graded, verdict

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
