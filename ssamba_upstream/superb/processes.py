"""s3prl's training and evaluation in subprocesses, which end together with the process that started them."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

RUNNER = (sys.executable, "-m", "ssamba_upstream", "run-downstream")
"""The command that trains and evaluates; s3prl's arguments are appended."""

ENDING = ((None, 5.0), (signal.SIGINT, 5.0), (signal.SIGKILL, 5.0))
"""Signals to end processes, and the seconds to wait after each. In a terminal, Ctrl-C has reached them already."""

SHOWN = 12  # last lines of a failed cell's log


class CellError(RuntimeError):
    """Raised when a cell fails; gives the reason and the last lines of its log."""


class Processes:
    """The running processes, each with a thread that waits for it."""

    def __init__(self):
        self._lock, self._running, self._ended = threading.Lock(), set(), False

    def run(self, command, **options) -> int:
        """Run a command, see ``subprocess.Popen``, and return its exit status; if interrupted, end it. After
        :meth:`end`, raise a CellError."""
        with self._lock:
            if self._ended:
                raise CellError("stopped before it started")
            process = subprocess.Popen(command, **options)
            self._running.add(process)
        try:
            return process.wait()
        except BaseException:
            _interrupt([process])
            raise
        finally:
            with self._lock:
                self._running.discard(process)

    def end(self) -> None:
        """Interrupt all running processes and prevent new ones from starting."""
        with self._lock:
            self._ended = True
            running = [*self._running]
        _interrupt(running)


def _interrupt(processes):
    """End processes as Ctrl-C does; kill only those that do not end.

    If a process is killed, its data-loading workers may wait forever for it to read their last batch.
    """
    for number, seconds in ENDING:
        for process in processes:
            if number is not None:
                process.send_signal(number)
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)


def run_s3prl(processes: Processes, folder: Path, arguments: list[str], gpu: str, lock: int | None = None) -> str:
    """Run s3prl in a cell's folder and return its output; raise a CellError if the exit status is not 0.

    Paths are relative, so that OUT can be moved between runs.
    """
    path = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]
    path = os.pathsep.join(filter(None, path))
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu, "PYTHONPATH": path}
    with open(folder / "log.txt", "ab") as log, open(folder / "printed.txt", "ab") as printed:
        before = printed.tell()
        # If this process is killed, s3prl continues and still holds the cell's lock, because it inherits the open file.
        status = processes.run(
            [*RUNNER, *arguments], cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=printed,
            stderr=log, pass_fds=[] if lock is None else [lock])
    if status:
        lines = re.split(r"[\r\n]+", (folder / "log.txt").read_text(errors="replace").strip())
        raise CellError("\n    ".join([f"s3prl's {arguments[1]} ended with status {status}; its log ends with:",
                                       *lines[-SHOWN:]]))
    return (folder / "printed.txt").read_bytes()[before:].decode(errors="replace")
