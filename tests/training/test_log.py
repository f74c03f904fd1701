"""The record of a run."""

import json
import math

from ssamba_upstream.training.log import RunLog


def test_a_bar_in_a_file_is_drawn_now_and_then(tmp_path, capsys, monkeypatch):
    """Otherwise, a scheduler's log of a long run would grow by ten states of the bar per second."""
    seconds = iter(range(0, 10**6, 5))
    monkeypatch.setattr("tqdm.std.time", lambda: float(next(seconds)))
    log = RunLog(tmp_path, 0, 200, 4)
    for _ in range(200):
        log.advance()
    log.close()
    drawn = capsys.readouterr().err.split("\r")
    assert 5 < len(drawn) < 40 and "800/800" in drawn[-1]


def test_what_is_not_a_number_is_null(tmp_path, capsys):
    log = RunLog(tmp_path, 0, 2, 4)
    log.record(1, "training", loss=math.nan, gradient_norm=math.inf)
    log.record(1, "validation", mAUC=None, accuracy=0.5)
    log.close()
    first, second = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert (first["loss"], first["gradient_norm"], second["mAUC"], second["accuracy"]) == (None, None, None, 0.5)
    assert "NaN" not in (tmp_path / "log.jsonl").read_text()
    assert "validation: mAUC -, accuracy 0.5" in capsys.readouterr().out
