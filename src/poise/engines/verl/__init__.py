"""poise on verl: stock verl's PPO trainer, whose baseline is read from the policy's own hidden states.

Verl is extended where it offers to be, and nothing of it is copied. Features are pooled in the workers, one
row a rollout travels, and the driver calls the same `poise.OnlineBaseline` as any other loop.

`poise-verl` (`main.py`) runs it: `settings.py` says what may be asked for, `engine.py` and `worker.py` read features
where the model is, `rollouts.py` finds the rollouts among verl's rows, `trainer.py` makes advantages of them.
"""
