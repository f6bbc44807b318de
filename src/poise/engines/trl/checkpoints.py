"""Checkpoints that hold a baseline, are whole or not there, and are continued exactly.

A checkpoint is written into a folder aside, closed with the digests of its files, and only then renamed. So a
run that is killed at any moment, or that runs out of disk, leaves the checkpoint before; and one that the disk has
spoiled is told from a whole one before anything is read from it.
"""

import errno
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch import nn
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints
from trl import GRPOTrainer

import poise
from poise.engines.trl.reward_scale import RewardScale
from poise.models.named import check_trainable
from poise.storage import checksums
from poise.storage.whole_files import sync, sync_all

logger = logging.getLogger(__name__)

UNFINISHED = "unfinished-checkpoint"
"""Folder, beside the checkpoints, in which the next one is written. TRL does not take it for a checkpoint."""
BASELINE_FILES = ("poise.safetensors", "poise.json")
BESIDE = "run.json"
"""What `CheckpointedTrainer.saved_beside` gave."""
_AS_GOOD_AS_FULL = 2**20  # bytes that are free


class CheckpointError(ValueError):
    """A checkpoint that training cannot go on from; the sentence says why."""


class CheckpointNotWrittenError(OSError):
    """A checkpoint that could not be written; the sentence says why, and what to do."""


class CheckpointedTrainer(GRPOTrainer):  # type: ignore[misc]
    """A `trl.GRPOTrainer` whose checkpoints hold a baseline, are whole or not there, and are continued exactly.

    Attributes:
        baseline: The `poise.OnlineBaseline` to save; `fitted_for` says what its state is of use for.
        reward_scale: What advantages are divided by, saved where they are.
        saved_beside: Gives plain values that a checkpoint shall hold as well, in `run.json`; None for no such file.
    """

    baseline: poise.OnlineBaseline
    reward_scale: RewardScale
    saved_beside: Callable[[], Mapping[str, Any]] | None = None
    _writing_aside = False
    _train_sampler: Any = None

    def fitted_for(self) -> dict[str, Any]:
        """What a saved baseline is of use for, in plain values."""
        raise NotImplementedError

    def train(self, resume_from_checkpoint: Any = None, *positional: Any, **named: Any) -> Any:
        """TRL's training; `True` goes on from the newest checkpoint that is whole.

        Raises:
            CheckpointError: If the checkpoint to go on from is not whole, there is none, or it is of another model,
                preset or other features.
            ValueError: If no parameter of the model can be trained.
        """
        check_trainable(self.model)
        found = [None]
        if resume_from_checkpoint and self.accelerator.is_main_process:
            found = [self._checked(resume_from_checkpoint)]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(found)
        return super().train(found[0], *positional, **named)

    def _checked(self, asked: Any) -> Any:
        """The path of the checkpoint that is asked for, with the baseline restored from it."""
        if asked is True:
            checkpoint = newest_whole_checkpoint(self.args.output_dir)
            if checkpoint is None:
                raise CheckpointError(f"{self.args.output_dir} has no whole checkpoint to go on from")
        else:
            checkpoint = Path(asked)
            fault = checkpoint_fault(checkpoint)
            if fault is not None:
                raise CheckpointError(f"{checkpoint} {fault}: go on from another checkpoint")
        self._restore_baseline(checkpoint)
        return str(checkpoint)

    def _restore_baseline(self, checkpoint: Path) -> None:
        """Continue the baseline of a checkpoint; one of something else is refused."""
        if is_of_poise(checkpoint):
            try:
                self.baseline.restore(checkpoint, fitted_for=self.fitted_for())
                self.reward_scale.restore(checkpoint)
            except ValueError as error:
                raise CheckpointError(str(error)) from error
        else:
            warnings.warn(
                f"{checkpoint} holds no poise.safetensors and poise.json: the baseline starts with an empty window",
                UserWarning,
                stacklevel=2,
            )

    # The order of prompts: every epoch draws another one, and the host draws the first one again.

    def _get_train_sampler(self, *positional: Any, **named: Any) -> Any:
        """TRL's sampler, kept so that its random numbers can be brought to where they were."""
        self._train_sampler = super()._get_train_sampler(*positional, **named)
        return self._train_sampler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """What the host restores, and the order of prompts of the epoch that the checkpoint was made in."""
        with loading_explained(checkpoint, "optimizer and scheduler states"):
            super()._load_optimizer_and_scheduler(checkpoint)
        generator = getattr(self._train_sampler, "generator", None)
        if checkpoint is not None and generator is not None:
            for _ in range(int(self.state.epoch or 0)):
                torch.randperm(self._train_sampler.num_samples, generator=generator)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """The host's random states."""
        with loading_explained(checkpoint, "random states"):
            super()._load_rng_state(checkpoint)

    # Saving.

    def _get_output_dir(self, trial: Any) -> str:
        """TRL's folder of checkpoints; while one is written, a folder aside in it."""
        folder: str = super()._get_output_dir(trial=trial)
        return str(Path(folder) / UNFINISHED) if self._writing_aside else folder

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """A whole checkpoint: it is written aside and renamed when every file of every process is there.

        Raises:
            CheckpointNotWrittenError: If it cannot be written; the checkpoints before it are as they were.
        """
        folder, name = Path(self._get_output_dir(trial=trial)), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        # An upload reads the folder while training goes on: it cannot be renamed.
        aside = folder if self.args.push_to_hub else folder / UNFINISHED
        with failure_explained(folder, name):
            if self.args.should_save and aside != folder:
                shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed while it wrote
            self.accelerator.wait_for_everyone()
            self._writing_aside = aside != folder
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._writing_aside = False
            if self.accelerator.is_main_process:
                self.baseline.save(aside / name, fitted_for=self.fitted_for())
                if self.args.scale_rewards == "batch":
                    self.reward_scale.save(aside / name)
                if self.saved_beside is not None:
                    (aside / name / BESIDE).write_text(json.dumps(self.saved_beside()) + "\n")
            if self.state.best_model_checkpoint == str(aside / name):
                self.state.best_model_checkpoint = str(folder / name)
                if self.args.should_save:
                    self.state.save_to_json(str(aside / name / TRAINER_STATE_NAME))
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                checksums.write_checksums(aside / name)
                sync_all(aside / name)
                if aside != folder:
                    self._rename(aside, folder, name)
        self.accelerator.wait_for_everyone()

    def _rename(self, aside: Path, folder: Path, name: str) -> None:
        if (folder / name).exists():  # of an earlier run in the same folder
            (folder / name).rename(aside / "replaced")
        (aside / name).rename(folder / name)
        sync(folder)
        shutil.rmtree(aside)
        rotate_checkpoints(
            output_dir=str(folder),
            save_total_limit=self.args.save_total_limit,
            best_model_checkpoint=self.state.best_model_checkpoint,
            use_mtime=True,
        )


@contextmanager
def loading_explained(checkpoint: str | None, what: str) -> Iterator[None]:
    """Say in one sentence that states cannot be loaded; hosts raise many kinds of errors there."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise CheckpointError(
            f"the {what} of {checkpoint} cannot be loaded safely ({type(error).__name__}: {reason:.200}): "
            "go on from another checkpoint"
        ) from error


@contextmanager
def failure_explained(folder: Path, name: str) -> Iterator[None]:
    """Say what to do where a checkpoint cannot be written, and give back the room that its beginning took."""
    try:
        yield
    # On a full disk safetensors and torch raise errors of their own.
    except (OSError, SafetensorError, RuntimeError) as error:
        full = folder.exists() and shutil.disk_usage(folder).free < _AS_GOOD_AS_FULL
        why = os.strerror(errno.ENOSPC) if full else error  # torch tells of places in its file
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
        free = shutil.disk_usage(folder).free / 2**20 if folder.exists() else 0.0
        before = [each.name for each in checkpoints(folder)]
        raise CheckpointNotWrittenError(
            f"{name} could not be written to {folder}, where {free:.0f} MiB are free ({why}). Make room, or make the "
            f"folder writable, and start the run again: it goes on from {before[-1] if before else 'its beginning'}"
        ) from error


def checkpoints(folder: Path | str) -> list[Path]:
    """The checkpoints in a folder, whole or not, the oldest step first."""
    prefix = f"{PREFIX_CHECKPOINT_DIR}-"
    found = [path for path in Path(folder).glob(f"{prefix}*") if path.name.removeprefix(prefix).isdecimal()]
    return sorted((path for path in found if path.is_dir()), key=checkpoint_step)


def checkpoint_step(checkpoint: Path) -> int:
    """Updates that a checkpoint was made after."""
    return int(checkpoint.name.rpartition("-")[2])


def newest_whole_checkpoint(folder: Path | str) -> Path | None:
    """The checkpoint of the latest step that is whole; those that are not are passed over, with a warning each."""
    for checkpoint in reversed(checkpoints(folder)):
        fault = checkpoint_fault(checkpoint)
        if fault is None:
            return checkpoint
        logger.warning("%s %s: it is passed over", checkpoint, fault)
    return None


def checkpoint_fault(checkpoint: Path) -> str | None:
    """Why there is no going on from a checkpoint, in words that follow its name; None if there is.

    A checkpoint of plain TRL has no digests, and is taken as it is.
    """
    if not checkpoint.is_dir():
        return "is no folder"
    of_trl = (checkpoint / TRAINER_STATE_NAME).is_file() and not (checkpoint / checksums.NAME).exists()
    if of_trl and not any((checkpoint / name).exists() for name in (*BASELINE_FILES, BESIDE)):
        return None
    return checksums.fault(checkpoint) or _name_fault(checkpoint)


def _name_fault(checkpoint: Path) -> str | None:
    """Whether the folder has another step in its name than it was made after."""
    step = json.loads((checkpoint / TRAINER_STATE_NAME).read_text()).get("global_step")
    named = checkpoint.name.rpartition("-")[2]
    return None if not named.isdecimal() or int(named) == step else f"was made after step {step}: it was renamed"


def read_beside(checkpoint: Path) -> dict[str, Any]:
    """What `CheckpointedTrainer.saved_beside` gave when the checkpoint was made."""
    if not (checkpoint / BESIDE).is_file():
        raise CheckpointError(f"{checkpoint} has no {BESIDE}: it is none of `poise train`, and is to be moved away")
    beside: dict[str, Any] = json.loads((checkpoint / BESIDE).read_text())
    return beside


def is_of_poise(checkpoint: Path) -> bool:
    """Whether a checkpoint holds a baseline."""
    return all(os.path.exists(checkpoint / name) for name in BASELINE_FILES)
