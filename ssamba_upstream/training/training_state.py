"""Training states, from which ``--resume`` continues a run exactly; written every few steps.

They contain no state of random generators, because every step's draws are seeded by the step.
"""

import errno
import os
import pickle
import re
import zipfile
from pathlib import Path

import torch

from ..checkpoint import why_unreadable
from ..files import replacing
from . import TrainingError

NAME = re.compile(r"step-(\d+)\.pt")


def save_training_state(folder, step, state, keep):
    """Write the state after a step, made of tensors, numbers, strings, dicts and lists, into the folder of states, and
    remove all but the newest ``keep``.

    Raises:
        TrainingError: If it cannot be written, for example on a full disk; earlier states are kept.
    """
    folder = Path(folder)
    target = folder / f"step-{step:08d}.pt"
    try:
        with replacing(target) as temporary, temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch reports some failures of its writer as RuntimeError
        states = training_states(folder)
        last = f"--resume continues from the last saved one, {states[0]}" if states else "No state has been saved yet"
        reason = "the disk is full" if getattr(error, "errno", None) == errno.ENOSPC else str(error)
        raise TrainingError(f"cannot save the training state {target}: {reason}. {last}") from error
    for old in training_states(folder)[keep:]:
        old.unlink()


def load_training_state(folder, report=print):
    """Return the newest readable state, or None if there are no states. Raise a TrainingError if none is readable.

    ``report`` is called with a sentence about each damaged state.
    """
    states = training_states(folder)
    for file in states:
        try:
            with zipfile.ZipFile(file) as content:
                damaged = content.testzip()  # torch does not verify the checksums it wrote
            if damaged:
                raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
            return torch.load(file, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
            report(f"{file} {why_unreadable(error)}, and is skipped")
    if states:
        raise TrainingError(f"no training state in {folder} can be read. Start again in a new folder")
    return None


def training_states(folder):
    """Return the files of training states, newest first."""
    found = {file: NAME.fullmatch(file.name) for file in Path(folder).glob("step-*.pt")}
    return sorted((file for file, match in found.items() if match), reverse=True)
