"""The record of a run."""

from ssamba_upstream.training.log import RunLog


def test_a_bar_in_a_file_is_drawn_now_and_then(tmp_path, capsys, monkeypatch):
    """A scheduler's log of a long run would otherwise grow by ten states of the bar a second."""
    seconds = iter(range(0, 10**6, 5))
    monkeypatch.setattr("tqdm.std.time", lambda: float(next(seconds)))
    log = RunLog(tmp_path, 0, 200, 4)
    for _ in range(200):
        log.advance()
    log.close()
    drawn = capsys.readouterr().err.split("\r")
    assert 5 < len(drawn) < 40 and "800/800" in drawn[-1]
