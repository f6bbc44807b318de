"""How well does a probe on a policy's own states tell what a prompt is worth, and what would tell it better?

The rule: estimators are fitted on training prompts and judged on held-out ones, each by the same rollouts; the reward
of a rollout that judges an estimate never enters it.
"""
