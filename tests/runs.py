"""What the tests of training runs share."""

import json
import os
import subprocess
import sys


def logged(out, *names, kind="training"):
    """Steps and values of the lines of that kind in a run's log."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [[line[name] for name in ("step", *names)] for line in lines if line["kind"] == kind]


def torchrun(*arguments):
    """The ``ssamba`` command in two processes on the CPU."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*launcher, "-m", "ssamba_upstream", *map(str, arguments), "--device", "cpu"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr
