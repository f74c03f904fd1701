"""Helpers for tests of training runs."""

import json
import os
import signal
import subprocess
import sys
import time

from ssamba_upstream.training.training_state import training_states


def logged(out, *names, kind="training"):
    """Return the steps and values of all lines of one kind in a run's log."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [[line[name] for name in ("step", *names)] for line in lines if line["kind"] == kind]


def torchrun(*arguments, processes=2, device="cpu"):
    """Run the ``ssamba`` command under torchrun and return its output."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    result = subprocess.run(
        [*launcher, "-m", "ssamba_upstream", *map(str, arguments), "--device", device],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


HELD = """
import signal, sys
from pathlib import Path
from ssamba_upstream.cli import main
from ssamba_upstream.training.loop import Run

step, folder, last = Run.step, Path(sys.argv[1]), int(sys.argv[2])

def held(self, number, batches):
    while (self.out, number) == (folder, last):
        signal.pause()
    return step(self, number, batches)

Run.step = held
main(sys.argv[3:])
"""


def kill_before(folder, step, *arguments, after=0.0):
    """Run the ``ssamba`` command and kill -9 it ``after`` seconds after a run has saved a state in a folder. However
    late the signal arrives, the run never makes the step."""
    command = [sys.executable, "-c", HELD, *map(str, (folder, step, *arguments))]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None and not training_states(folder / "states"):
        time.sleep(0.01)
    time.sleep(after)
    process.kill()
    assert process.wait() == -signal.SIGKILL
