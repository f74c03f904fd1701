"""Files and folders that are whole at every moment, and hashes."""

import fcntl
import hashlib
import json
import math
import threading

import pytest

from ssamba_upstream.files import (
    file_hash,
    json_hash,
    locked,
    new_folder,
    read_json,
    replacing,
    shown,
    to_json,
    write_json,
    write_text,
)


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    file = tmp_path / "new" / "file.txt"
    write_text("first\n", file)
    with pytest.raises(OSError, match="disk"), replacing(file) as temporary:
        temporary.write_text("hal")
        raise OSError("the disk is full")
    assert file.read_text() == "first\n" and list(file.parent.iterdir()) == [file]
    write_json({"a": [1, "é"]}, file)
    assert file.read_text(encoding="utf-8") == '{\n  "a": [\n    1,\n    "\\u00e9"\n  ]\n}\n'


def test_numbers_that_are_not_finite(tmp_path):
    content = {"a": [math.nan, 1.5, (math.inf, -math.inf)], "b": {"c": math.nan}, "d": 2, "e": "NaN"}
    expected = {"a": [None, 1.5, [None, None]], "b": {"c": None}, "d": 2, "e": "NaN"}
    assert json.loads(to_json(content)) == expected and math.isnan(content["a"][0])
    write_json(content, tmp_path / "new.json")
    (tmp_path / "old.json").write_text(json.dumps(content))
    assert read_json(tmp_path / "new.json") == read_json(tmp_path / "old.json") == expected
    assert [*map(shown, (0.5, 1, math.nan, None))] == ["0.5000", "1.0000", "-", "-"]
    assert shown(0.123456, ".2g") == "0.12"


def test_two_may_write_the_same_file(tmp_path):
    file = tmp_path / "file"
    with replacing(file) as one:
        one.write_text("one")
        with replacing(file) as two:
            two.write_text("two")
        assert file.read_text() == "two"
    assert file.read_text() == "one" and list(tmp_path.iterdir()) == [file]


def test_a_folder_appears_when_it_is_whole(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "deeper" / "new"):
        with new_folder(folder) as temporary:
            (temporary / "file").touch()
            assert not (folder / "file").exists()
        assert [entry.name for entry in folder.iterdir()] == ["file"]
        assert [entry for entry in folder.parent.iterdir() if entry.name.endswith(".tmp")] == []
        with pytest.raises(FileExistsError, match="is not an empty folder"), new_folder(folder):
            pass
    with pytest.raises(FileExistsError), new_folder(tmp_path / "empty" / "file"):
        pass
    with pytest.raises(ValueError, match="broken"), new_folder(tmp_path / "none"):
        raise ValueError("broken")
    assert {entry.name for entry in tmp_path.iterdir()} == {"empty", "deeper"}


def test_one_holds_a_lock_and_others_say_that_they_wait(tmp_path, monkeypatch, capsys):
    waits, flock, order = threading.Event(), fcntl.flock, []

    def flock_noted(file, operation):
        if operation == fcntl.LOCK_EX:
            waits.set()
        flock(file, operation)

    def second():
        with locked(tmp_path / "lock", "waiting"):
            order.append("second")

    monkeypatch.setattr(fcntl, "flock", flock_noted)
    with locked(tmp_path / "lock", "not said"):
        other = threading.Thread(target=second)
        other.start()
        assert waits.wait(60)
        order.append("first")
    other.join()
    assert order == ["first", "second"] and capsys.readouterr().out == "waiting\n"


def test_hashes(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    assert file_hash(tmp_path / "file") == hashlib.sha256(b"content").hexdigest()
    assert json_hash({"a": 1, "b": [2]}) == json_hash({"b": [2], "a": 1}) != json_hash({"a": 1, "b": [3]})
