"""What a run needs to go on as if it had never stopped: written every few steps, read by ``--resume``.

Nothing random has a state of its own: whatever is drawn at a step is seeded by the step.
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
    """Write the state after so many steps, and remove all but the newest ``keep``.

    Args:
        folder: where the states lie.
        state: tensors, numbers, strings, and dicts and lists of them.

    Raises:
        TrainingError: it cannot be written, on a full disk for one; those written before are left as they were.
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
        last = f"the last one is {states[0]}; --resume goes on from there" if states else "there is none yet"
        reason = "the disk is full" if getattr(error, "errno", None) == errno.ENOSPC else str(error)
        raise TrainingError(f"cannot save the training state {target}: {reason}; {last}") from error
    for old in training_states(folder)[keep:]:
        old.unlink()


def load_training_state(folder, report=print):
    """The newest state that can be read; None where there is none at all.

    Args:
        report: called with a sentence about every state that is damaged and passed over.

    Raises:
        TrainingError: there are states, but none that can be read.
    """
    states = training_states(folder)
    for file in states:
        try:
            with zipfile.ZipFile(file) as content:
                damaged = content.testzip()  # torch does not look at the checksums it wrote
            if damaged:
                raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
            return torch.load(file, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
            report(f"{file} {why_unreadable(error)}, and is passed over")
    if states:
        raise TrainingError(f"no training state in {folder} can be read; start again in a new folder")
    return None


def training_states(folder):
    """Files of training states, newest first."""
    found = {file: NAME.fullmatch(file.name) for file in Path(folder).glob("step-*.pt")}
    return sorted((file for file, match in found.items() if match), reverse=True)
