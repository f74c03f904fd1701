"""The scripts that measure, at toy size: what they call is there, or the first hour on a GPU would find that it is not.
"""

import json
import os
import subprocess
import sys

import pytest

from helpers.paths import CHECKOUT


@pytest.mark.slow
@pytest.mark.parametrize("part, table", [("right", "against-the-cpu"), ("kernels", "sweeps")])
def test_steps_for_a_gpu_run_on_a_cpu(tmp_path, part, table):
    pytest.importorskip("triton", reason="triton is not installed")
    environment = os.environ | {"TOY": "1", "PYTHON": sys.executable}
    done = subprocess.run(["bash", CHECKOUT / "scripts" / "gpu_check.sh", part, tmp_path], env=environment,
                          capture_output=True, text=True)
    outputs = {path.name: path.read_text() for path in (tmp_path / part).glob("*.txt")}
    assert done.returncode == 0, done.stdout + json.dumps(outputs, indent=1)
    assert "FAILED" not in done.stdout and f"| {part} | install | passed |" in done.stdout
    assert json.loads((tmp_path / f"{table}.json").read_text())
    assert f"## {table}" in (tmp_path / "summary.md").read_text()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_data_sets_are_measured(tmp_path):
    command = [sys.executable, CHECKOUT / "scripts" / "measure_data_sets.py", "--files", "200", "--shards", "20",
               "--workers", "1", "--out", tmp_path / "out.json"]
    subprocess.run(command, check=True)
    measured = json.loads((tmp_path / "out.json").read_text())
    for name in ("published manifest", "manifest", "shards"):
        assert all(value >= 0 for what, value in measured[name].items() if "MiB" not in what), name
