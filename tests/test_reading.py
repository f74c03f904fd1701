"""Recordings are read ahead, in order, and an unreadable one does not affect the others."""

import threading

import pytest

from ssamba_upstream.audio import AudioError
from ssamba_upstream.reading import read_ahead, read_all


def test_batches_come_in_order_without_unreadable_entries():
    def read(name):
        if name == "torn":
            raise AudioError(name, "is torn")
        return name.upper()

    errors = []
    found = list(read_ahead(read, [["a", "torn"], ["torn"], ["b", "c"]], errors.append))
    assert found == [{"a": "A"}, {"b": "B", "c": "C"}] and [[*batch] for batch in found] == [["a"], ["b", "c"]]
    assert [error.reason for error in errors] == ["is torn", "is torn"]
    with pytest.raises(AudioError, match="is torn"):
        list(read_ahead(read, [["torn"]]))
    assert list(read_ahead(read, [])) == [] and read_all(str.upper, "ab") == ["A", "B"]


def test_the_next_batch_is_read_while_one_is_used():
    second_was_read = threading.Event()

    def read(entry):
        if entry == 2:
            second_was_read.set()
        return entry

    batches = read_ahead(read, [[1], [2], [3]])
    assert next(batches) == {1: 1} and second_was_read.wait(60)
    batches.close()


def test_other_errors_end_the_reading():
    with pytest.raises(ZeroDivisionError):
        list(read_ahead(lambda entry: 1 / entry, [[1], [0]]))
