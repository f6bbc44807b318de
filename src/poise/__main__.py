"""The command `poise`, also as `python -m poise`."""

import sys

from poise.extras import required_extra


def main() -> None:
    """Run the command, or say in one sentence which extra it lacks."""
    try:
        with required_extra("train", "the command"):
            from poise.cli import app
    except ModuleNotFoundError as missing:
        if missing.__cause__ is None:  # a module of poise itself: a broken installation
            raise
        sys.exit(f"poise: {missing}")
    app(prog_name="poise")


if __name__ == "__main__":
    main()
