"""The benchmarks run, and report what they say they do; how fast anything is, is not tested."""

import csv

import torch

from ssamba_upstream import SsambaConfig, ops
from ssamba_upstream.benchmark import model, pretraining, scan, timing
from ssamba_upstream.cli import main


def test_scan(monkeypatch):
    monkeypatch.setattr(scan, "SCAN_SHAPES", ((1, 4, 9),))
    monkeypatch.setattr(scan, "_peers", dict)
    rows = scan.bench_scan(rounds=1)
    assert {row["scan"] for row in rows} >= {"torch", "reference"}
    assert {row["mode"] for row in rows} == {"forward", "forward + backward"}
    assert all(row["ms"] > 0 and row["x bound"] > 0 for row in rows)
    assert all(row["peak MiB"] > 0 for row in rows if row["scan"] not in scan.LOOPS)


def test_model(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(model, "MODEL_INPUTS", ((1, 1),))
    assert main(["bench", "model", "--size", "tiny", "--rounds", "1", "--out", str(tmp_path)]) == 0
    with (tmp_path / "model.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["mode"] for row in rows] == ["forward", "training step"]
    assert all(0 < float(row["scans' share"]) for row in rows)
    assert "| tiny | 1 x 1 s | forward |" in capsys.readouterr().out


def test_pretraining(monkeypatch):
    monkeypatch.setattr(pretraining.SsambaConfig, "from_size", lambda size: SsambaConfig(
        hidden_size=32, num_hidden_layers=1, pretraining_frames=64))
    rows = pretraining.bench_pretraining(rounds=1, sizes=("tiny",))
    assert [row["objective"] for row in rows] == ["shared_mask", "two_pass"]
    assert all(value > 0 for row in rows for value in list(row.values())[2:])


def test_peers_compute_the_same_scan():
    inputs = scan._scan_inputs(2, 6, 11, "cpu")
    expected = ops.selective_scan(**inputs, delta_softplus=True, backend="reference")
    for name, peer in scan._peers().items():
        if "compiled" not in name:
            torch.testing.assert_close(peer(**inputs), expected, rtol=1e-4, atol=1e-5, msg=name)


def test_peak_memory():
    def doubles():
        once = torch.ones(1 << 20)
        return once + once

    assert 2 * 4 * 2**20 <= timing.peak_memory(doubles) < 2.2 * 4 * 2**20


def test_system_info(capsys):
    assert main(["info", "--system"]) == 0
    assert "reference  available" in capsys.readouterr().out
