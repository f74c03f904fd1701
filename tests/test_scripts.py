"""SLURM scripts with stand-ins for SLURM's commands, and measuring scripts at toy size, to test that they run."""

import json
import os
import subprocess
import sys
import time

import pytest

from helpers.paths import CHECKOUT

SRUN = """#!/usr/bin/env bash
env | grep -E "SRUN_CPUS|SHUTDOWN" > "$0.environment"
trap 'exit 143' TERM
touch "$0.runs"
if [ "$FINISHES" = 1 ]; then exit 0; fi
while true; do sleep 0.1; done
"""


@pytest.fixture
def slurm(tmp_path):
    """Return a function that starts a script with stand-ins for SLURM's commands, which record their arguments."""
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "scontrol").write_text('#!/usr/bin/env bash\necho "$@" | tee -a "$0.arguments"\n')
    for command in ("srun", "scontrol"):
        (tmp_path / command).chmod(0o755)

    def start(script, **variables):
        environment = os.environ | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "12", "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "3",
            **variables}
        return subprocess.Popen(["bash", CHECKOUT / "scripts" / script, "recipe"], env=environment)

    return start


@pytest.mark.parametrize("script", ["pretrain.slurm", "superb.slurm"])
def test_slurm_s_steps_have_the_job_s_processors(slurm, tmp_path, script):
    assert slurm(script, FINISHES="1").wait() == 0
    environment = (tmp_path / "srun.environment").read_text().split()
    assert "SRUN_CPUS_PER_TASK=12" in environment
    if script == "pretrain.slurm":
        (patience,) = [line.partition("=")[2] for line in environment if "SHUTDOWN_TIMEOUT" in line]
        assert 60 < int(patience) < 300  # SLURM sends the signal this many seconds before the end


def test_a_job_that_is_signalled_queues_itself_again(slurm, tmp_path):
    job = slurm("pretrain.slurm", FINISHES="0")
    while not (tmp_path / "srun.runs").exists():
        time.sleep(0.05)
    job.terminate()
    assert job.wait() == 0
    assert (tmp_path / "scontrol.arguments").read_text().splitlines()[-1] == "requeue 77"


@pytest.mark.slow
@pytest.mark.skipif("SSAMBA_TEST_GPU_CHECK" not in os.environ, reason="minutes; SSAMBA_TEST_GPU_CHECK=1 runs it")
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
