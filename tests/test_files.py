"""Files and folders that are complete at every moment, locks, journals and hashes."""

import errno
import fcntl
import hashlib
import json
import math
import os
import threading

import pytest

from ssamba_upstream.files import (
    Journal,
    file_hash,
    json_hash,
    locked,
    markdown_table,
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


@pytest.mark.parametrize("name", ["folder", "table.csv"])
def test_one_process_at_a_time_has_a_lock(tmp_path, name):
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for _ in range(2):
        with locked(tmp_path / name), locked(tmp_path / "other"):
            with pytest.raises(BlockingIOError, match=f"another process is writing .*{name}. Wait until"):
                with locked(tmp_path / name):
                    pass
    with pytest.raises(KeyboardInterrupt), locked(tmp_path / name):
        raise KeyboardInterrupt
    assert sorted(tmp_path.rglob("*")) == before


def test_who_waits_for_a_lock_gets_it_next(tmp_path, monkeypatch):
    """The second and third process wait, and each finds that the lock's file was removed in the meantime."""
    had, waiting, waits = [], threading.Semaphore(0), []

    def wait(number):
        with locked(tmp_path / "table", wait=True):
            with pytest.raises(BlockingIOError), locked(tmp_path / "table"):
                pass
            had.append(number)

    def note(*said, **options):
        waits.append(said)
        waiting.release()

    monkeypatch.setattr("builtins.print", note)
    others = [threading.Thread(target=wait, args=(number,)) for number in range(2)]
    with locked(tmp_path / "table"):
        for other in others:
            other.start()
            assert waiting.acquire(timeout=60)
        assert not had
    for other in others:
        other.join()
    assert sorted(had) == [0, 1]
    assert waits[0] == (f"{tmp_path / 'table'}: waiting for another process that is writing it",)
    assert not list(tmp_path.iterdir())


def test_a_forked_process_does_not_have_the_lock(tmp_path):
    """Data workers are forked processes that outlive a killed run by some seconds."""
    with locked(tmp_path / "table") as descriptor:
        child = os.fork()
        if not child:
            try:
                os.fstat(descriptor)
            except OSError:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(UserWarning, match="has no locks. Make sure that no other process"), locked(tmp_path / "table"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("torn", [b"", b'{"a": [3', b"\xff"])
def test_a_journal_is_continued_after_its_last_whole_line(tmp_path, torn):
    with Journal(tmp_path / "new" / "journal") as journal:
        assert journal.entries == []
        journal.append({"a": [1, "\udcff"]})
    with open(tmp_path / "new" / "journal", "ab") as file:
        file.write(torn)
    with Journal(tmp_path / "new" / "journal") as journal:
        journal.append(2)
        assert journal.entries == [{"a": [1, "\udcff"]}, 2]
    assert (tmp_path / "new" / "journal").read_text() == '{"a": [1, "\\udcff"]}\n2\n'


def test_hashes(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    assert file_hash(tmp_path / "file") == hashlib.sha256(b"content").hexdigest()
    assert json_hash({"a": 1, "b": [2]}) == json_hash({"b": [2], "a": 1}) != json_hash({"a": 1, "b": [3]})


def test_a_markdown_table_aligns_numbers_on_the_right():
    table = markdown_table(["name", "accuracy", "loss"], [["a", 87.5, "-"], ["**b**", "**3**", "1e-05"]])
    assert table == "| name | accuracy | loss |\n| --- | ---: | ---: |\n| a | 87.5 | - |\n| **b** | **3** | 1e-05 |"
