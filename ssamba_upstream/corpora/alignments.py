"""Recordings with labelled time segments, such as phones, and the frames drawn from them."""

import math
import os
import random
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

from ..audio import expected_seconds
from .labelled import GROUP, SPLITS, LabelledSetError, read_table, split_by_hash
from .report import first

COLUMNS = ("path", "start", "end", "label")


class Segment(NamedTuple):
    """A part of a recording, from ``start`` to ``end`` in seconds, with a label."""

    start: float
    end: float
    label: str


@dataclass
class AlignedSet:
    """Recordings and their segments.

    Attributes:
        segments: each recording's segments by its path; parts between segments have no label.
        splits: "train", "dev" or "test" for each recording, by its path.
        skipped: a sentence for each recording that has no usable segments.
        groups: each recording's group, such as its speaker, by its path; empty if unknown.

    Raises:
        LabelledSetError: If a split has no recordings, or files are missing.
    """

    segments: dict[Path, list[Segment]]
    splits: dict[Path, str]
    skipped: list[str] = field(default_factory=list)
    groups: dict[Path, str] = field(default_factory=dict)

    def __post_init__(self):
        lacking = [split for split in SPLITS if split not in self.splits.values()]
        if lacking or not set(self.splits.values()) <= set(SPLITS):
            found = first(sorted(set(self.splits.values()))) or "none"
            raise LabelledSetError(f"probing frames needs recordings in train, dev and test; the splits are {found}")
        missing = [path for path in self.segments if not path.is_file()]
        if missing:
            raise LabelledSetError(f"{len(missing)} of {len(self.segments)} recordings do not exist: {first(missing)}")


@dataclass(frozen=True)
class RecordingFrame(os.PathLike):
    """A frame of an audio file, usable in place of a recording's path.

    Attributes:
        path: the audio file.
        number: index of the frame, from 0. It covers the time from number * hop to (number + 1) * hop.
    """

    path: Path
    number: int

    def __fspath__(self):
        return os.fspath(self.path)


@dataclass
class LabelledFrames:
    """Frames with one label and one split each, as lists of equal length."""

    frames: list[RecordingFrame]
    labels: list[str]
    splits: list[str]


def read_alignments(source) -> AlignedSet:
    """Read a table of segments.

    Args:
        source: a CSV, or a tab-separated ``.tsv``, with the columns path, start, end, label and, optionally, split and
            group. It has one line per segment, with times in seconds and the recording's path relative to the table's
            folder. Without a split column, recordings are ordered by the SHA-256 of their path; the first 20 % are
            test and the next 10 % dev. (A speaker's recordings may then be in both train and test; a split column can
            keep them apart.)

    Raises:
        LabelledSetError: see :class:`AlignedSet`; also if there are other columns, a line is incomplete, a segment does
            not end after its start, segments of a recording overlap, or a recording is in two splits or groups.
        FileNotFoundError: If the file does not exist.
    """
    source = Path(source)
    if not source.is_file():
        raise FileNotFoundError(f"there is no table {source}. Give a CSV or TSV with the columns {', '.join(COLUMNS)}")
    segments, splits, groups = defaultdict(list), {}, {}
    for where, row in read_table(source, COLUMNS, ("split", GROUP)):
        segments[row["path"]].append(_segment(row["start"], row["end"], row["label"], where))
        for column, found in (("split", splits), (GROUP, groups)):
            if found.setdefault(row["path"], row.get(column)) != row.get(column):
                raise LabelledSetError(f"{where}: {row['path']} is in {found[row['path']]} and in {row[column]}")
    if None in splits.values():
        splits = split_by_hash(splits, "the recordings")
    try:
        for name, found in segments.items():
            found.sort()
            check_order(found, name)
        return AlignedSet({source.parent / name: found for name, found in segments.items()},
                          {source.parent / name: split for name, split in splits.items()},
                          groups={source.parent / name: group for name, group in groups.items() if group})
    except LabelledSetError as error:
        raise LabelledSetError(f"{source}: {error}") from None


def _segment(start, end, label, where):
    try:
        segment = Segment(float(start), float(end), label)
    except ValueError:
        segment = Segment(math.nan, math.nan, label)
    if not 0 <= segment.start < segment.end < math.inf:
        raise LabelledSetError(f"{where}: expected seconds, the end after the start; got start {start}, end {end}")
    return segment


def check_order(segments, name):
    """Raise LabelledSetError unless each of a recording's segments ends before the next one starts."""
    for earlier, later in pairwise(segments):
        if later.start < earlier.end - 1e-6:
            raise LabelledSetError(f"segments of {name} overlap: {earlier.label} ends at {earlier.end} s, "
                                   f"{later.label} starts at {later.start} s; a frame has only one label")


def draw_frames(aligned, hop, most, seed=0) -> LabelledFrames:
    """Draw frames of an aligned set uniformly at random, at most ``most``.

    A frame has the label of the segment that contains its middle, at (number + 1/2) * hop. Any part of a segment past
    the end of its recording is ignored.

    The hop is in seconds.

    Raises:
        LabelledSetError: If most of the labelled time lies past the end of the recordings.
    """
    runs = [(path, label, numbers) for path, segments in aligned.segments.items()
            for label, numbers in _frames_of_segments(segments, expected_seconds(path), hop)]
    ends = [*accumulate(len(numbers) for *_, numbers in runs)]
    labelled = sum(segment.end - segment.start for segments in aligned.segments.values() for segment in segments)
    if not ends or ends[-1] * hop < 0.5 * labelled:
        raise LabelledSetError(f"the segments last {labelled:,.0f} s in total, but the recordings cover only "
                               f"{(ends[-1] if ends else 0) * hop:,.0f} s of them. Check that times are in seconds.")
    found = LabelledFrames([], [], [])
    for number in sorted(random.Random(seed).sample(range(ends[-1]), min(most, ends[-1]))):
        run = bisect_right(ends, number)
        path, label, numbers = runs[run]
        found.frames.append(RecordingFrame(path, numbers[number - ends[run]]))
        found.labels.append(label)
        found.splits.append(aligned.splits[path])
    return found


def _frames_of_segments(segments, seconds, hop):
    """Yield the label and the range of frame numbers of each segment, in a recording that lasts ``seconds``."""
    for start, end, label in segments:
        # Rounded, so that rounding errors do not decide about a middle that lies exactly on a border.
        begin, stop = (math.ceil(round(moment / hop - 0.5, 6)) for moment in (start, min(end, seconds)))
        yield label, range(begin, max(begin, stop))
