"""Packing items into groups of limited size."""

import math

import pytest

from ssamba_upstream.audio import batches_by_length
from ssamba_upstream.packing import pack


@pytest.mark.parametrize("sizes, packs", [
    ([3, 3, 9, 1, 5, 1], [[0, 1], [2], [3, 4], [5]]), ([7], [[0]]), ([6, 6], [[0], [1]]), ([], []),
])
def test_neighbours_are_packed(sizes, packs):
    assert list(pack(sizes, 6)) == packs


def test_the_longest_come_first():
    assert list(batches_by_length([1.0, 4.0, math.inf, 2.0], 6.0)) == [[2], [1, 3], [0]]
