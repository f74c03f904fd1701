"""AudioSet-20k: the balanced training clips and the evaluation clips, each with several classes."""

import csv
from pathlib import Path

from .data_set import DataSet, PreparationError
from .labelled import join_labels, read_table
from .manifest import ManifestError, find_audio
from .report import first

SEGMENT_LISTS = {"train": "balanced_train_segments.csv", "test": "eval_segments.csv"}


def _read_audioset(root):
    rows = read_table(root / "class_labels_indices.csv", ("mid", "display_name"))
    names = {row["mid"]: row["display_name"] for _, row in rows}
    segments = {split: _read_segments(root / name, names) for split, name in SEGMENT_LISTS.items()}
    try:
        files, _ = find_audio([root])
    except ManifestError as error:
        raise PreparationError(error) from None
    clips = {path.stem: path for path in map(Path, reversed(files))}
    recordings, notes = [], []
    for split, listed in segments.items():
        before = len(recordings)
        for where, label in listed:
            names = [stem for stem in _stems(*where) if stem in clips]
            if names:
                recordings.append((clips[names[0]], label, split))
        notes.append(f"{len(recordings) - before:,} of the {len(listed):,} clips in {SEGMENT_LISTS[split]} were found.")
    if not recordings:
        raise PreparationError(f"none of {len(files):,} audio files is named like a clip in the two lists: "
                               f"{first([str(path.relative_to(root)) for path in clips.values()])}")
    return recordings, notes


def _read_segments(file, names):
    """Return ((id, start, end), label) for each segment."""
    if not file.is_file():
        raise PreparationError(f"{file.name} is missing")
    segments = []
    with open(file, newline="", encoding="utf-8-sig") as stream:
        reader = csv.reader(stream, skipinitialspace=True)
        for row in reader:
            if not row or row[0].startswith("#"):
                continue
            line = f"{file.name}, line {reader.line_num}"
            try:
                video, start, end, mids = row
                where = video, float(start), float(end)
            except ValueError:
                raise PreparationError(f"{line}: expected a YouTube id, a start and an end in seconds, and quoted "
                                       f"classes; got {', '.join(row)}") from None
            unknown = [mid for mid in mids.split(",") if mid not in names]
            if unknown:
                raise PreparationError(f"{line}: class_labels_indices.csv has no class {first(unknown)}")
            segments.append((where, join_labels([names[mid] for mid in mids.split(",")])))
    return segments


def _stems(video, start, end):
    """Return the possible names of a clip, without the extension: its id, alone or with its start, or start and end."""
    moments = [""]
    for scale, form in ((1, "g"), (1, ".1f"), (1, ".3f"), (1000, ".0f")):  # seconds, or milliseconds
        first_moment, last_moment = (f"{scale * seconds:{form}}" for seconds in (start, end))
        moments += [f"_{first_moment}", f"_{first_moment}_{last_moment}"]
    return [f"{prefix}{video}{moment}" for prefix in ("", "Y") for moment in moments]


AUDIOSET20K = DataSet(
    title="AudioSet-20k",
    folder="audioset20k",
    read=_read_audioset,
    released={"train": 22160, "test": 20371},
    classes=527,
    layout="""\
AudioSet's lists are at https://research.google.com/audioset/download.html. Its clips are parts of YouTube videos,
which you have to obtain yourself. Give the folder ROOT with
  ROOT/balanced_train_segments.csv
  ROOT/eval_segments.csv
  ROOT/class_labels_indices.csv
and the ten-second clips, at any depth, as wav, flac, ogg, mp3 or aiff, named by the video's id, such as
-0RWZT-miFs:
  -0RWZT-miFs.wav, Y-0RWZT-miFs.wav, -0RWZT-miFs_420.wav, -0RWZT-miFs_420000.wav, -0RWZT-miFs_420.000_430.000.wav""",
)
