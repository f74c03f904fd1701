"""s3prl's runner in a separate process."""

import json
import os
import subprocess
import sys

from .paths import CHECKOUT

LOSSES = """
import json, sys
import torch
from ssamba_upstream.plugin.runner import main

backward, losses = torch.Tensor.backward, []

def noted(loss, *args, **kwargs):
    losses.append(loss.item())
    return backward(loss, *args, **kwargs)

torch.Tensor.backward = noted
for arguments in json.loads(sys.argv[1]):
    main([*arguments, "--device", "cpu"])
print("losses", json.dumps(losses))
"""


def run(*runs, folder):
    """Do several runs of the runner in a separate process; return its output and the losses."""
    command = [sys.executable, "-c", LOSSES, json.dumps(runs)]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", "TORCH_HOME": str(folder / "hub")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        return done.stdout + done.stderr, None
    printed, losses = done.stdout.rsplit("losses ", 1)
    return printed + done.stderr, json.loads(losses)
