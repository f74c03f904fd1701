"""Recordings with a label for each stretch of time, such as phones; and the frames drawn from them."""

import csv
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
from .labelled import GROUP, SPLITS, LabelledSetError, split_by_hash
from .report import first

COLUMNS = ("path", "start", "end", "label")


class Segment(NamedTuple):
    """A stretch of a recording: from ``start`` to ``end``, in seconds, there is ``label``."""

    start: float
    end: float
    label: str


@dataclass
class AlignedSet:
    """Recordings and their segments.

    Attributes:
        segments: of each recording, by its path; they may leave stretches out, which then have no label.
        splits: "train", "dev" or "test" of each recording, by its path.
        left_out: a sentence for each recording that has no usable segments.
        groups: group of each recording, such as its speaker, by its path; empty if they are not known.

    Raises:
        LabelledSetError: a split without recordings, or missing files.
    """

    segments: dict[Path, list[Segment]]
    splits: dict[Path, str]
    left_out: list[str] = field(default_factory=list)
    groups: dict[Path, str] = field(default_factory=dict)

    def __post_init__(self):
        lacking = [split for split in SPLITS if split not in self.splits.values()]
        if lacking or not set(self.splits.values()) <= set(SPLITS):
            found = first(sorted(set(self.splits.values()))) or "none"
            raise LabelledSetError(f"frames are probed with recordings in train, dev and test; the splits are {found}")
        missing = [path for path in self.segments if not path.is_file()]
        if missing:
            raise LabelledSetError(f"{len(missing)} of {len(self.segments)} recordings do not exist: {first(missing)}")


@dataclass(frozen=True)
class RecordingFrame(os.PathLike):
    """A frame of an audio file: goes where the path of a recording goes.

    Attributes:
        path: the audio file.
        number: of the frame, counted from 0. It stands for the time from number * hop to (number + 1) * hop.
    """

    path: Path
    number: int

    def __fspath__(self):
        return os.fspath(self.path)


@dataclass
class LabelledFrames:
    """Frames, one label and one split each: lists of like lengths."""

    frames: list[RecordingFrame]
    labels: list[str]
    splits: list[str]


def read_alignments(source) -> AlignedSet:
    """Read a table of segments.

    Args:
        source: a CSV, or with the ending ``.tsv`` a table with tabs, with the columns path, start, end, label and, if
            wanted, split and group: a line for each segment, in seconds, its recording's path relative to the table's
            folder. Where there is no split, recordings are ordered by the SHA-256 of their path: the first 20 % are
            test, the next 10 % dev. (Those of one speaker may so get into train and test; a split can keep them
            apart.)

    Raises:
        LabelledSetError: see :class:`AlignedSet`; other columns, an incomplete line, a segment that does not end after
            its start, segments of a recording that overlap, or a recording in two splits or groups.
        FileNotFoundError: no such file.
    """
    source = Path(source)
    if not source.is_file():
        raise FileNotFoundError(f"there is no table {source}. Give a CSV or TSV with the columns {', '.join(COLUMNS)}")
    segments, splits, groups = defaultdict(list), {}, {}
    with open(source, newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream, delimiter="\t" if source.suffix.lower() == ".tsv" else ",")
        columns = set(reader.fieldnames or [])
        if not set(COLUMNS) <= columns <= {*COLUMNS, "split", GROUP}:
            raise LabelledSetError(f"{source} has the columns {', '.join(reader.fieldnames or ['(none)'])}; expected "
                                   f"{', '.join(COLUMNS)}, and split and group if wanted")
        for row in reader:
            where = f"{source}, line {reader.line_num}"
            if None in row or not all(row.values()):
                raise LabelledSetError(f"{where}: expected a value for each of {', '.join(reader.fieldnames)}")
            segments[row["path"]].append(_segment(row["start"], row["end"], row["label"], where))
            for column, found in (("split", splits), (GROUP, groups)):
                if found.setdefault(row["path"], row.get(column)) != row.get(column):
                    raise LabelledSetError(f"{where}: {row['path']} is in {found[row['path']]} and in {row[column]}")
    if "split" not in columns:
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
    """See that each of a recording's segments ends before the next begins; raises LabelledSetError."""
    for earlier, later in pairwise(segments):
        if later.start < earlier.end - 1e-6:
            raise LabelledSetError(f"segments of {name} overlap: {earlier.label} ends at {earlier.end} s, "
                                   f"{later.label} begins at {later.start} s; a frame has one label")


def draw_frames(aligned, hop, most, seed=0) -> LabelledFrames:
    """Draw some of an aligned set's frames, each as likely as any other; all of them where there are no more.

    A frame has the label of the segment that its middle lies in, (number + 1/2) * hop from the start. What
    segments say of the time past the end of their recording is ignored.

    Args:
        aligned: an AlignedSet.
        hop: in seconds.
        most: the number of frames.
        seed: of the draw.

    Raises:
        LabelledSetError: most of the labelled time lies past the end of the recordings.
    """
    runs = [(path, label, numbers) for path, segments in aligned.segments.items()
            for label, numbers in _frames_of_segments(segments, expected_seconds(path), hop)]
    ends = [*accumulate(len(numbers) for *_, numbers in runs)]
    labelled = sum(segment.end - segment.start for segments in aligned.segments.values() for segment in segments)
    if not ends or ends[-1] * hop < 0.5 * labelled:
        raise LabelledSetError(f"the segments are {labelled:,.0f} s long together, of which the recordings last "
                               f"{(ends[-1] if ends else 0) * hop:,.0f} s; are they in seconds?")
    found = LabelledFrames([], [], [])
    for number in sorted(random.Random(seed).sample(range(ends[-1]), min(most, ends[-1]))):
        run = bisect_right(ends, number)
        path, label, numbers = runs[run]
        found.frames.append(RecordingFrame(path, numbers[number - ends[run]]))
        found.labels.append(label)
        found.splits.append(aligned.splits[path])
    return found


def _frames_of_segments(segments, seconds, hop):
    """Yields the label and the numbers of the frames, a range, of each segment of a recording of so many seconds."""
    for start, end, label in segments:
        # Rounded, as a middle that lies on a border must not fall to either side by what floats leave over.
        begin, stop = (math.ceil(round(moment / hop - 0.5, 6)) for moment in (start, min(end, seconds)))
        yield label, range(begin, max(begin, stop))
