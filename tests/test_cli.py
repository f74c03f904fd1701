"""The ``ssamba`` command, as its user meets it."""

import json
import subprocess
import sys

import pytest
import torch

from ssamba_upstream.checkpoint import load_model
from ssamba_upstream.cli import main


def test_init_info_convert(tmp_path, capsys, official_checkpoint):
    assert main(["init", "--size", "tiny", str(tmp_path / "tiny")]) == 0
    assert main(["info", str(tmp_path / "tiny")]) == 0
    assert "6,922,176" in capsys.readouterr().out
    assert main(["init", "--size", "tiny", str(tmp_path / "tiny")]) == 1
    assert "is not an empty folder" in capsys.readouterr().err

    assert main(["convert", str(official_checkpoint), str(tmp_path / "converted")]) == 0
    assert json.loads((tmp_path / "converted" / "config.json").read_text())["block_order"] == "paired"
    assert main(["convert", str(tmp_path / "converted"), "--block-order", "sequential", str(tmp_path / "c.ckpt")]) == 0
    assert load_model(tmp_path / "c.ckpt").config.block_order == "sequential"
    assert main(["info", str(official_checkpoint)]) == 0
    assert "8 x 64, from clips of 10.24 s" in capsys.readouterr().out


def test_init_is_seeded(tmp_path):
    for seed, name in ((0, "a.ckpt"), (0, "b.ckpt"), (1, "c.ckpt")):
        main(["init", "--seed", str(seed), str(tmp_path / name)])
    a, b, c = (load_model(tmp_path / name).pos_embed for name in ("a.ckpt", "b.ckpt", "c.ckpt"))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_errors_are_one_line(tmp_path, capsys):
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    for arguments in (["info", str(tmp_path / "nowhere")], ["info", str(tmp_path / "broken.safetensors")]):
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert error.startswith("ssamba: ") and error.count("\n") == 1


@pytest.mark.parametrize("task", ["sid", "er", "ks"])
def test_corpora_check_of_nothing(tmp_path, capsys, task):
    assert main(["corpora", "check", task, str(tmp_path / "nowhere")]) == 1
    assert "Problem: " in capsys.readouterr().out


def test_importing_the_package_does_not_import_s3prl():
    check = "import sys, ssamba_upstream, ssamba_upstream.cli; sys.exit('s3prl' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


def test_a_missing_extra_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    for name in ("pretraining.trainer", "training.loop", "training.log"):
        monkeypatch.delitem(sys.modules, f"ssamba_upstream.{name}", raising=False)
    assert main(["pretrain", "smoke", str(tmp_path / "run")]) == 1
    assert "tensorboardX" in (error := capsys.readouterr().err) and "extras superb, pretraining" in error
