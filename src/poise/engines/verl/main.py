"""The command `poise-verl`: its help, and the one sentence where verl is not installed.

Nothing of verl is imported before it is needed: both must work without it.
"""

import sys
from collections.abc import Sequence

from poise.extras import required_extra

HELP = """\
poise-verl OPTION=VALUE ...       train with poise on verl; every option of verl's ppo_trainer, and a block of poise's

  poise.preset=poise              any preset of poise, such as poise-single (n=1), paper, rloo, none
  +poise.preset_options.FIELD=V   fields of the preset to change, such as window_rows=8192
  poise.layers=[19]               decoder layers whose hidden states are read, from 0; default one, at 0.6 of the depth
  poise.pool_tokens=10            states are means over the last tokens of prompt and reasoning
  poise.end_of_thinking="</think>"  text whose tokens end the reasoning; null where a model has none
  poise.domain_column=data_source   column of the data set that names a prompt's domain
  poise.update_share=1            share of each minibatch's rollouts that the policy is updated on
  poise.keep_rollouts=false       keep prompts, completions and advantages as parquet beside the checkpoints

needed: data.train_files, data.val_files, actor_rollout_ref.model.path, actor_rollout_ref.rollout.name
shorter, with a file of recipes/: poise-verl --config-dir . +recipes=dapo_math_qwen3_4b

poise-verl OPTION=VALUE ... --cfg job     what a run would be asked for: verl's options too, all 1,100 lines
poise-verl OPTION=VALUE ... --cfg job --package poise     poise's block alone
docs/guides/verl.md goes from an empty machine to an evaluated model; docs/engines/verl.md says what verl is changed by
"""
"""Twenty lines; verl's own help has more than a thousand."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Show the help, or run the command; what is wrong with the input is one sentence and exit code 2."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if {"--help", "-h"} & set(given):
        print(HELP, end="")
        return
    try:
        with required_extra("verl", "poise-verl"):
            from poise.engines.verl.command import run
    except ModuleNotFoundError as missing:
        if missing.__cause__ is None:  # a module of poise itself: a broken installation
            raise
        print(missing, file=sys.stderr)
        raise SystemExit(2) from None
    run()


if __name__ == "__main__":
    main()
