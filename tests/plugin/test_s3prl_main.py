"""``ssamba s3prl``: s3prl's newer recipes with this package's entries."""

import importlib.util
import math
import os
import re
import subprocess
import sys

import pytest
import yaml

from helpers import superb_corpora
from helpers.paths import CHECKOUT
from ssamba_upstream import SsambaConfig, SsambaModel, cli
from ssamba_upstream.checkpoint import save_model
from ssamba_upstream.plugin import runner


def test_hands_its_arguments_over_with_the_entries_registered(monkeypatch):
    received = []

    def hand_over(arguments, run, program):
        received.append((program, *arguments))

    monkeypatch.setattr(runner, "_hand_over", hand_over)
    cli.main(["s3prl", "SuperbSID", "--build_upstream.name", "ssamba_tiny"])
    assert received == [("ssamba s3prl", "SuperbSID", "--build_upstream.name", "ssamba_tiny")]


class Lacking:
    """A finder that raises as if the recipes needed a package that is not installed."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "s3prl.problem":
            raise ModuleNotFoundError("No module named 'sed_eval'", name="sed_eval")


@pytest.fixture
def lacking():
    sys.meta_path.insert(0, Lacking)
    yield
    sys.meta_path.remove(Lacking)


def test_a_recipe_whose_package_is_missing_says_so(monkeypatch, lacking):
    import s3prl

    for name in [name for name in sys.modules if name.startswith("s3prl.problem")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(s3prl, "problem", raising=False)
    with pytest.raises(SystemExit, match="s3prl needs sed_eval. Run: pip install .*superb-all"):
        runner.run_s3prl_main(["SuperbSID"])


# Recipes from the corpus to the result


def run_recipe(name, folder, *arguments):
    """Run four steps of a recipe in a separate process; return training losses and test results."""
    save_model(SsambaModel(SsambaConfig(num_hidden_layers=1)), folder / "tiny")
    options = {"target_dir": "run", "cache_dir": "cache", "device": "cpu", "num_workers": 0,
               "prepare_data.dataset_root": "corpus", "build_batch_sampler.train.batch_size": 3,
               "build_upstream.name": "ssamba_tiny", "build_upstream.path_or_url": "tiny",
               "train.total_steps": 4, "train.log_step": 1, "train.save_step": 2}
    command = [sys.executable, "-m", "ssamba_upstream", "s3prl", name, *arguments]
    command += [str(part) for option, value in options.items() for part in (f"--{option}", value)]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    losses = re.findall(r"train at step \d+\n.*\| loss: (\S+)", done.stdout + done.stderr)
    results = sorted((folder / "run" / "evaluate").rglob("result.yaml"))
    return list(map(float, losses)), [yaml.safe_load(path.read_text()) for path in results]


needs_superb_all = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("tensorboard", "sed_eval", "pandas", "pkg_resources")),
    reason="s3prl.problem needs the extra superb-all")


@pytest.mark.slow
@needs_superb_all
def test_intent_classification(tmp_path):
    superb_corpora.intent_classification(tmp_path / "corpus")
    losses, results = run_recipe("SuperbIC", tmp_path, "--train.eval_step", "2")
    assert len(losses) == 4 and all(math.isfinite(loss) and loss > 0 for loss in losses)
    assert len(results) == 1 and math.isfinite(results[0]["loss"]) and 0 <= results[0]["accuracy"] <= 1


@pytest.mark.slow
@needs_superb_all
def test_speaker_verification(tmp_path):
    superb_corpora.s3prl_speaker_verification(tmp_path / "corpus", tmp_path / "cache")
    losses, results = run_recipe("SuperbASV", tmp_path)
    assert len(losses) == 4 and all(math.isfinite(loss) and loss > 0 for loss in losses)
    assert len(results) == 2 and all(0 <= result["EER"] <= 1 for result in results)


@pytest.mark.slow
def test_the_help_says_the_command_s_own_name(capsys):
    pytest.importorskip("tensorboardX")
    with pytest.raises(SystemExit):
        cli.main(["run-downstream", "--help"])
    assert capsys.readouterr().out.startswith("usage: ssamba run-downstream [-h] -m ")
