"""s3prl's training and evaluation in processes of their own, which end with what has begun them."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

RUNNER = (sys.executable, "-m", "ssamba_upstream", "run-downstream")
"""The command that trains and evaluates; s3prl's arguments follow."""

SHOWN = 12  # lines of the log of a cell that failed


class CellError(RuntimeError):
    """A cell failed; says why, with the last lines of its log."""


class Processes:
    """The processes that run now, each waited for by a thread of its own."""

    def __init__(self):
        self._lock, self._running, self._ended = threading.Lock(), set(), False

    def run(self, command, **options) -> int:
        """The exit status of a command, see ``subprocess.Popen``; where this thread is interrupted, it is killed.

        Raises:
            CellError: the processes have been ended.
        """
        with self._lock:
            if self._ended:
                raise CellError("stopped before it began")
            process = subprocess.Popen(command, **options)
            self._running.add(process)
        try:
            return process.wait()
        except BaseException:
            process.kill()
            raise
        finally:
            with self._lock:
                self._running.discard(process)

    def end(self) -> None:
        """Terminate what runs, and let nothing else begin."""
        with self._lock:
            self._ended = True
            for process in self._running:
                process.terminate()


def run_s3prl(processes: Processes, folder: Path, arguments: list[str], gpu: str, lock: int | None = None) -> str:
    """Run s3prl in a cell's folder, where its relative paths begin, so that OUT may be moved between runs.

    Returns:
        What it printed.

    Raises:
        CellError: it ended with another status than 0.
    """
    path = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]
    path = os.pathsep.join(filter(None, path))
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu, "PYTHONPATH": path}
    with open(folder / "log.txt", "ab") as log, open(folder / "printed.txt", "ab") as printed:
        before = printed.tell()
        # When this process is killed s3prl goes on, and with the lock's file open it keeps the cell.
        status = processes.run(
            [*RUNNER, *arguments], cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=printed,
            stderr=log, pass_fds=[] if lock is None else [lock])
    if status:
        lines = re.split(r"[\r\n]+", (folder / "log.txt").read_text(errors="replace").strip())
        raise CellError("\n    ".join([f"s3prl's {arguments[1]} ended with status {status}; its log ends:",
                                       *lines[-SHOWN:]]))
    return (folder / "printed.txt").read_bytes()[before:].decode(errors="replace")
