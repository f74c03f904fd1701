"""The benchmarks run and report what they document. Speed is not tested."""

import csv
import functools
import math

import pytest
import torch

from ssamba_upstream import SsambaConfig, ops
from ssamba_upstream.benchmark import efficiency, model, pretraining, scan, timing
from ssamba_upstream.cli import main


@pytest.mark.slow
def test_scan(monkeypatch):
    monkeypatch.setattr(scan, "SCAN_SHAPES", ((1, 4, 9),))
    monkeypatch.setattr(scan, "_peers", dict)
    rows = scan.bench_scan(rounds=1)
    assert {row["scan"] for row in rows} >= {"torch", "reference"}
    assert {row["mode"] for row in rows} == {"forward", "forward + backward"}
    assert all(row["ms"] > 0 and row["x bound"] > 0 for row in rows)
    assert all(row["peak MiB"] > 0 for row in rows if row["scan"] not in scan.LOOPS)


@pytest.mark.slow
def test_model(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(model, "MODEL_INPUTS", ((1, 1),))
    assert main(["bench", "model", "--size", "tiny", "--rounds", "1", "--out", str(tmp_path)]) == 0
    with (tmp_path / "model.csv").open() as file:
        rows = list(csv.DictReader(file))
    push = rows.pop()
    assert push["mode"] == "push" and push["input"] == "1 x 0.08 s" and float(push["audio s / s"]) > 0
    assert [row["mode"] for row in rows] == list(model.MODES)
    assert all(0 < float(row["mixing's share"]) and float(row["peak MiB"]) > 0 for row in rows)
    assert [bool(row["ms, torch scan"]) for row in rows] == [mode == "forward" for mode in model.MODES]
    assert "| tiny | 1 x 1 s | forward |" in capsys.readouterr().out


@pytest.mark.slow
def test_pretraining(monkeypatch):
    monkeypatch.setattr(pretraining.SsambaConfig, "from_size", lambda size: SsambaConfig(
        hidden_size=32, num_hidden_layers=1, pretraining_frames=64))
    rows = pretraining.bench_pretraining(rounds=1, sizes=("tiny",))
    assert [row["objective"] for row in rows] == ["shared_mask", "two_pass"]
    assert all(value > 0 for row in rows for value in list(row.values())[2:])


@pytest.mark.slow
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


@pytest.mark.slow
def test_efficiency(monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    shallow = functools.partial(efficiency.write_study, depths=(2, 2))
    monkeypatch.setattr(efficiency, "write_study", shallow)
    assert main(["bench", "efficiency", "--tokens", "16", "8", "--rounds", "1", "--out", str(tmp_path)]) == 0
    with (tmp_path / "efficiency_tiny.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["tokens"], row["batch"], row["mode"]) for row in rows] == [
        (tokens, batch, mode) for tokens in ("8", "16") for batch in ("1", "4") for mode in efficiency.MODES]
    for network in ("SSAMBA", "SSAST", "SSAST eager"):
        assert all(float(row[f"{network} ms"]) > 0 and float(row[f"{network} MiB"]) > 0 for row in rows)
    assert not any(row["skipped"] for row in rows)
    text = (tmp_path / "efficiency_tiny.md").read_text()
    assert text in capsys.readouterr().out
    assert "| training step | 4 | 16 |" in text and "- batch 4, against SSAST: not measured" in text
    assert (tmp_path / "efficiency_tiny.png").read_bytes().startswith(b"\x89PNG")


def test_efficiency_refuses_half_a_column(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert main(["bench", "efficiency", "--tokens", "8", "12", "--out", str(tmp_path)]) == 1
    assert "12 tokens: expected a multiple of 8" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size, ours, published_millions", [
    ("tiny", 6_922_176, 6), ("small", 25_345_920, 23), ("base", 96_698_112, 89)])
def test_efficiency_networks_are_the_published(size, ours, published_millions):
    with torch.device("meta"):
        networks = efficiency.build_networks(size, 512)
    count = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    width = networks["SSAST"].config.hidden_size
    # SSAST's authors count the two unused classifiers of DeiT and the two heads of pretraining as well.
    heads = 2 * (width + 1) * 1000 + 2 * ((width + 1) * width + (width + 1) * 256)
    assert count["SSAMBA"] == ours
    assert count["SSAST"] == count["SSAST eager"]
    assert round((count["SSAST"] + heads) / 1e6) == published_millions


def test_efficiency_attentions_agree_but_for_the_matrix():
    networks = efficiency.build_networks("tiny", 512, (1, 1))
    fused, eager = networks["SSAST"], networks["SSAST eager"]
    eager.load_state_dict(fused.state_dict())
    fbank = torch.randn(1, 1024, 128)
    peaks = {}
    for network in (fused, eager):
        call = efficiency._call(network, fbank, False)
        call()
        peaks[network] = timing.peak_memory(call)
    torch.testing.assert_close(fused(fbank)[0], eager(fbank)[0], rtol=1e-3, atol=1e-4)
    matrix = 4 * 3 * 512**2
    assert peaks[eager] > 2 * matrix > peaks[fused]


def test_efficiency_failure_of_one_keeps_the_others(monkeypatch):
    def call(network, fbank, gradients):
        def fails():
            raise RuntimeError("not enough memory:\nyou tried to allocate 1 byte")

        long = fbank.shape[1] > 16
        return fails if long and not gradients and network.config.model_type != "ssamba" else lambda: None

    monkeypatch.setattr(efficiency, "_call", call)
    rows = list(efficiency.bench_efficiency(rounds=2, tokens=(8, 16, 24), depths=(1, 1)))
    failed = "RuntimeError: not enough memory: you tried to allocate 1 byte"
    for row in rows:
        fails = row["mode"] == "inference" and row["tokens"] > 8
        assert row["SSAMBA ms"] > 0
        assert (row["SSAST ms"] == row["SSAST MiB"] == "") == fails
        assert row["skipped"] == (f"SSAST: {failed}; SSAST eager: {failed}" if fails else "")


def test_efficiency_skips_what_would_not_fit(monkeypatch):
    series = efficiency._Series("SSAST eager")
    series.check_memory(512, 1)
    assert series.reason is None  # nothing has been measured yet
    series.add(512, 1.0, 2**30)
    series.check_memory(1024, 2**33)
    assert series.reason is None
    series.check_memory(2048, 2**34)
    assert series.reason == "up to 16.0 GiB expected, 16.0 available"
    linear = efficiency._Series("SSAMBA")
    linear.add(512, 1.0, 2**30)
    linear.check_memory(2048, 2**34)
    assert linear.reason is None

    monkeypatch.setattr(efficiency, "available_memory", lambda device: 1)
    first, second = [row for row in efficiency.bench_efficiency(rounds=1, tokens=(8, 16), depths=(1, 1))
                     if (row["batch"], row["mode"]) == (1, "inference")]
    assert not first["skipped"]
    assert second["SSAMBA ms"] == second["SSAST ms"] == ""
    assert second["skipped"].count("GiB expected") == 3


@pytest.mark.slow
def test_efficiency_skips_what_takes_too_long(monkeypatch):
    monkeypatch.setattr(efficiency, "MOST_SECONDS", 0)
    rows = list(efficiency.bench_efficiency(rounds=1, tokens=(8, 16), depths=(1, 1)))
    assert all((row["SSAMBA ms"] == "") == (row["tokens"] == 16) for row in rows)
    assert "SSAMBA: a call took 0 s at 8 tokens" in rows[-1]["skipped"]


@pytest.mark.slow
def test_efficiency_interrupted_keeps_what_was_measured(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    bench = efficiency.bench_efficiency

    def interrupted(*arguments):
        yield next(bench(rounds=1, tokens=(8,), depths=(1, 1)))
        raise KeyboardInterrupt

    monkeypatch.setattr(efficiency, "bench_efficiency", interrupted)
    assert main(["bench", "efficiency", "--out", str(tmp_path)]) == 130
    assert {path.name for path in tmp_path.iterdir()} == {f"efficiency_tiny.{kind}" for kind in ("csv", "md", "png")}
    with (tmp_path / "efficiency_tiny.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 1


@pytest.mark.parametrize("ours, theirs, expected", [
    ([2, 4, 8, 16], [1, 4.0001, 16, 64], 200),  # at the second measurement
    ([4, 4, 4, 4], [1, 2, 8, 16], 200 * math.sqrt(2)),  # the midpoint on a logarithmic scale
    ([4, 1, 4, 4], [1, 2, 2, 8], 400 * math.sqrt(2)),  # permanently, whatever the earlier order
    ([1, 1, 1, 1], [2, 2, 2, 2], 100),
    ([2, 2, 2, 2], [1, 1, 1, 2], None),
])
def test_crossover(ours, theirs, expected):
    assert efficiency.crossover([100, 200, 400, 800], ours, theirs) == (
        None if expected is None else pytest.approx(expected, rel=1e-3))


def test_crossovers_and_claim_in_words():
    def row(batch, tokens, *values):
        networks = "SSAMBA", "SSAST", "SSAST eager"
        names = [f"{network} {unit}" for unit in ("ms", "MiB") for network in networks]
        return {"mode": "inference", "batch": batch, "tokens": tokens} | dict(zip(names, values))

    rows = [row(1, 512, 2, 1, 1, 3, 4, 8), row(1, 22528, 1, 10, "", 30, 20, "")]
    first, second, third, *_ = efficiency.crossovers(rows)
    assert first["against"] == "SSAST" and 512 < int(first["time"]) < 22528
    assert first["memory"] == "none up to 22528"
    assert (second["time"], second["memory"]) == ("none up to 512", "512, the fewest measured")
    assert third["time"] == third["memory"] == "not measured"
    assert efficiency.compare_claim(rows).splitlines()[:2] == [
        "- batch 1: 90.0 % less time and 50.0 % more memory than SSAST",
        "- batch 1, against SSAST eager: not measured"]


def test_system_info(capsys):
    assert main(["info", "--system"]) == 0
    told, (library, why) = capsys.readouterr().out, ops.product.choice()
    assert f"torch            {torch.__version__}\n" in told and "\ntransformers     " in told
    assert "reference  available" in told and f"linear products on cpu (float32): {library}\n  {why}\n" in told
