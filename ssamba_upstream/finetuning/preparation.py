"""Downloaded data sets -> labelled sets for fine-tuning and probing, checked."""

import csv
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ..audio import AUDIO_EXTENSIONS, AudioError, read_header
from ..files import replacing
from ..labelled import COLUMNS, LabelledSet, join_labels, split_labels
from ..manifest import ManifestError, find_audio
from ..superb.corpora import hash_split
from .scenes import SCENE_SECONDS, mix_scenes


class PreparationError(ValueError):
    """A data set that is not there, or not as its authors released it; says what is wrong and what to do."""


@dataclass(frozen=True)
class DataSet:
    """A data set that can be prepared.

    Attributes:
        title: its name.
        folder: of its archive; the root that is given may be that folder or hold it.
        read: of the root, returns (recordings, notes): (path, label, split) of each recording, and sentences for the
            report. Raises PreparationError.
        released: number of recordings in each split of the released set.
        classes: number of classes in the released set.
        layout: where it comes from, and what has to lie in the root.
        gaps: leave out what cannot be read, and say so; otherwise that is an error.
        scenes: mix the recordings, which are short excerpts, to scenes with a label for every second.
    """

    title: str
    folder: str
    read: Callable
    released: dict[str, int]
    classes: int
    layout: str
    gaps: bool = False
    scenes: bool = False


@dataclass
class PreparationReport:
    """What was prepared.

    Attributes:
        title: of the data set.
        root: its folder.
        counts: recordings in each split.
        classes: number of classes in them.
        notes: sentences worth reading.
    """

    title: str
    root: Path
    counts: dict[str, int]
    classes: int
    notes: list[str]

    def __str__(self):
        width = max(map(len, self.counts))
        return "\n".join([
            f"{self.title} in {self.root}: {sum(self.counts.values()):,} recordings, {self.classes} classes",
            *(f"  {split:{width}}  {count:6,}" for split, count in self.counts.items()),
            *(f"  Note: {note}" for note in self.notes),
        ])


def prepare(name, root, out) -> PreparationReport:
    """Write a downloaded data set as a labelled set, see :func:`ssamba_upstream.labelled.read_labelled`.

    A part of the set, such as a few of its classes, is as good as the whole, and the report says what it is. The
    headers of all recordings are read.

    Args:
        name: one of SETS.
        root: the data set's folder.
        out: the CSV. Paths in it are absolute, but relative for what lies below its folder. The scenes of
            "urban8k_scenes" are written beside it, into a folder of its name without the ending, see
            :func:`ssamba_upstream.finetuning.scenes.mix_scenes`.

    Raises:
        PreparationError: the data set is not there, is laid out otherwise, or lacks something; the message says how
            it has to be. No CSV is written then.
    """
    data_set = SETS[name]
    root, out = Path(os.path.abspath(root)), Path(os.path.abspath(out))
    if out.suffix != ".csv":
        raise PreparationError(f"{out}: the name of a labelled set has to end in .csv")
    if (root / data_set.folder).is_dir():
        root = root / data_set.folder
    try:
        if not root.is_dir():
            raise PreparationError("no such folder")
        recordings, notes = data_set.read(root)
        if not recordings:
            raise PreparationError("no recording is listed")
        recordings = _readable(recordings, data_set, notes)
        counts, classes = _compare(recordings, data_set, notes)
        if data_set.scenes:
            recordings = mix_scenes(recordings, out.with_suffix(""))
            scenes = Counter(fold for _, _, fold in recordings)
            notes.append(f"They make {len(recordings):,} scenes of {SCENE_SECONDS} s: "
                         + ", ".join(f"{count} of {fold}" for fold, count in scenes.items()) + ".")
        LabelledSet(*map(list, zip(*recordings)))
    except ValueError as error:
        raise PreparationError(f"{data_set.title} in {root}: {error}\n\n{data_set.layout}") from None
    _write(out, recordings)
    return PreparationReport(data_set.title, root, counts, classes, notes)


def _readable(recordings, data_set, notes):
    """The recordings whose headers can be read."""
    unreadable, kept = [], []
    for recording in tqdm(recordings, "reading headers", unit=" files"):
        try:
            read_header(recording[0])
        except AudioError as error:
            unreadable.append(f"{recording[0]}: {error.reason}")
        else:
            kept.append(recording)
    if unreadable:
        problem = f"{len(unreadable):,} of {len(recordings):,} recordings cannot be read: {_first(unreadable)}"
        if not data_set.gaps or not kept:
            raise PreparationError(problem)
        notes.append(f"{problem}. They are left out.")
    return kept


def _compare(recordings, data_set, notes):
    """(recordings in each split, number of classes); how that compares with the released set becomes a note."""
    found = Counter(split for _, _, split in recordings)
    foreign = sorted(set(found) - set(data_set.released))
    if foreign:
        raise PreparationError(f"there are the splits {_first(foreign)}; expected {', '.join(data_set.released)}")
    counts = {split: found[split] for split in data_set.released if found[split]}
    classes = len({name for _, label, _ in recordings for name in split_labels(label)})
    if classes > data_set.classes:
        raise PreparationError(f"there are {classes} classes, where the released set has {data_set.classes}; is this "
                               "another version?")
    if (counts, classes) == (data_set.released, data_set.classes):
        notes.insert(0, "The counts are those of the released set.")
    else:
        released = sum(data_set.released.values())
        notes.insert(0, f"This is not the whole released set, but {classes} of {data_set.classes} classes and "
                        f"{len(recordings):,} of {released:,} recordings.")
    return counts, classes


def _write(out, recordings):
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for path, label, split in recordings:
            below = path.is_relative_to(out.parent)
            writer.writerow([path.relative_to(out.parent).as_posix() if below else path, label, split])


def _read_esc50(root):
    table = root / "meta" / "esc50.csv"
    if table.is_file():
        rows = _read_table(table, ("filename", "fold", "category"))
        return [(root / "audio" / row["filename"], row["category"], row["fold"]) for row in rows], []
    recordings, foreign = [], []
    for path in _audio_of_folders(root):
        name = re.fullmatch(r"(\d)-\d+-[A-Z]", path.stem)
        if name:
            recordings.append((path, re.sub(r"^\d+ - ", "", path.parent.name), name[1]))
        else:
            foreign.append(str(path.relative_to(root)))
    if foreign or not recordings:
        audio = f"files that are not named {{fold}}-{{clip}}-{{take}}: {_first(foreign)}" if foreign else "no audio"
        raise PreparationError(f"there is no meta/esc50.csv, as in ESC-50; and for ESC-10 there is {audio}")
    return recordings, ["Laid out as ESC-10, by a folder for each class."]


def _audio_of_folders(root):
    """Audio files that lie in a folder of the root, sorted; hidden ones are left out."""
    return [path for path in sorted(root.glob("[!.]*/[!.]*")) if path.suffix.lower() in AUDIO_EXTENSIONS]


SPLIT_LISTS = {"dev": "validation_list.txt", "test": "testing_list.txt"}


def _read_speech_commands(root):
    words = [path for path in _audio_of_folders(root) if not path.parent.name.startswith("_")]
    if not words:
        raise PreparationError("there is no folder of a word with recordings in it")
    absent = [name for name in SPLIT_LISTS.values() if not (root / name).is_file()]
    if len(absent) == len(SPLIT_LISTS):
        return _split_by_hash(root, words)
    if absent:
        raise PreparationError(f"{absent[0]} is missing")
    splits, missing = {path.relative_to(root).as_posix(): "train" for path in words}, []
    listed = {name: split for split, file in SPLIT_LISTS.items() for name in (root / file).read_text().split()}
    folders = {path.parent.name for path in words}
    for name, split in listed.items():
        if name in splits:
            splits[name] = split
        elif name.split("/")[0] in folders:
            missing.append(name)
    if missing:
        raise PreparationError(f"{len(missing):,} recordings that the two lists name are missing: {_first(missing)}")
    return [(path, path.parent.name, split) for path, split in zip(words, splits.values())], []


def _split_by_hash(root, words):
    """The split by the rule that made the two lists; a test set of the same words beside the folder comes first."""
    by_rule = {"train": [], "dev": [], "discarded": []}
    for path in words:
        by_rule[hash_split(path.name)].append(path)
    note = "There are no lists of the splits, which are drawn by speaker, with the rule that made the lists"
    test_root = root.with_name(root.name.replace("speech_commands", "speech_commands_test_set"))
    tests = _audio_of_folders(test_root) if test_root != root else []
    if tests and {path.parent.name for path in tests} <= {path.parent.name for path in words}:
        note += f"; but the test set is {test_root}, and what the rule takes for it is left out, as in SUPERB"
    else:
        tests = by_rule["discarded"]
    parts = {"train": by_rule["train"], "dev": by_rule["dev"], "test": tests}
    return [(path, path.parent.name, split) for split, part in parts.items() for path in part], [f"{note}."]


SEGMENT_LISTS = {"train": "balanced_train_segments.csv", "test": "eval_segments.csv"}


def _read_audioset(root):
    rows = _read_table(root / "class_labels_indices.csv", ("mid", "display_name"))
    names = {row["mid"]: row["display_name"] for row in rows}
    segments = {split: _read_segments(root / name, names) for split, name in SEGMENT_LISTS.items()}
    try:
        files, _ = find_audio([root])
    except ManifestError as error:
        raise PreparationError(error) from None
    clips = {path.stem: path for path in map(Path, reversed(files))}
    recordings, notes = [], []
    for split, listed in segments.items():
        found = [(next((clips[stem] for stem in _stems(*where) if stem in clips), None), label, split)
                 for where, label in listed]
        there = [recording for recording in found if recording[0]]
        notes.append(f"{len(there):,} of the {len(listed):,} clips of {SEGMENT_LISTS[split]} are there.")
        recordings += there
    if not recordings:
        raise PreparationError(f"none of {len(files):,} audio files is named like a clip of the two lists: "
                               f"{_first([str(path.relative_to(root)) for path in clips.values()])}")
    return recordings, notes


def _read_segments(file, names):
    """((id, start, end), label) of each segment."""
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
                raise PreparationError(f"{line}: expected a YouTube id, a start and an end in seconds, and classes in "
                                       f"quotation marks; got {', '.join(row)}") from None
            unknown = [mid for mid in mids.split(",") if mid not in names]
            if unknown:
                raise PreparationError(f"{line}: class_labels_indices.csv has no class {_first(unknown)}")
            segments.append((where, join_labels([names[mid] for mid in mids.split(",")])))
    return segments


def _stems(video, start, end):
    """Names under which a clip is known, without the ending: by its id alone, or with its start, or start and end."""
    moments = ["", *(f"_{unit(start)}{also_end}" for unit in _UNITS for also_end in ("", f"_{unit(end)}"))]
    return [f"{prefix}{video}{moment}" for prefix in ("", "Y") for moment in moments]


_UNITS = (
    lambda seconds: f"{seconds:g}",
    lambda seconds: f"{seconds:.1f}",
    lambda seconds: f"{seconds:.3f}",
    lambda seconds: f"{1000 * seconds:.0f}",
)


def _read_urban_sound(root):
    rows = _read_table(root / "metadata" / "UrbanSound8K.csv", ("slice_file_name", "fold", "class"))
    return [(root / "audio" / f"fold{row['fold']}" / row["slice_file_name"], row["class"], f"fold{row['fold']}")
            for row in rows], []


def _read_table(file, columns):
    """The rows of a CSV, as dictionaries, each with a value in the columns."""
    if not file.is_file():
        raise PreparationError(f"{file.name} is missing")
    with open(file, newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        if not set(columns) <= set(reader.fieldnames or []):
            found = ", ".join(reader.fieldnames or ["(none)"])
            raise PreparationError(f"{file.name} has the columns {found}; expected {', '.join(columns)} among them")
        rows = []
        for row in reader:
            if not all(row[column] for column in columns):
                raise PreparationError(f"{file.name}, line {reader.line_num}: expected a value for each of "
                                       f"{', '.join(columns)}")
            rows.append(row)
    return rows


def _first(values, count=3):
    more = f" and {len(values) - count:,} more" if len(values) > count else ""
    return ", ".join(values[:count]) + more


def _speech_commands(version, recordings, classes):
    return DataSet(
        title=f"Speech Commands v0.0{version}",
        folder=f"speech_commands_v0.0{version}",
        read=_read_speech_commands,
        released=recordings,
        classes=classes,
        layout=f"""\
Speech Commands is described in https://arxiv.org/abs/1804.03209, and version {version} is
http://download.tensorflow.org/data/speech_commands_v0.0{version}.tar.gz
Unpack it, and give the folder ROOT with
  ROOT/WORD/SPEAKER_nohash_N.wav   for each of {classes} words, or some of them
  ROOT/validation_list.txt
  ROOT/testing_list.txt""",
    )


SETS = {
    "audioset20k": DataSet(
        title="AudioSet-20k",
        folder="audioset20k",
        read=_read_audioset,
        released={"train": 22160, "test": 20371},
        classes=527,
        layout="""\
AudioSet's lists are on https://research.google.com/audioset/download.html; its clips are parts of YouTube videos,
which everyone has to get for themselves. Give the folder ROOT with
  ROOT/balanced_train_segments.csv
  ROOT/eval_segments.csv
  ROOT/class_labels_indices.csv
and the clips of ten seconds, at any depth, as wav, flac, ogg, mp3 or aiff, named by the video's id, such as
-0RWZT-miFs:
  -0RWZT-miFs.wav, Y-0RWZT-miFs.wav, -0RWZT-miFs_420.wav, -0RWZT-miFs_420000.wav, -0RWZT-miFs_420.000_430.000.wav""",
        gaps=True,
    ),
    "esc50": DataSet(
        title="ESC-50",
        folder="ESC-50-master",
        read=_read_esc50,
        released=dict.fromkeys("12345", 400),
        classes=50,
        layout="""\
ESC-50 is on https://github.com/karolpiczak/ESC-50. Download and unpack it, and give the folder ROOT with
  ROOT/meta/esc50.csv
  ROOT/audio/1-100032-A-0.wav and so on
or, for ESC-10 of https://github.com/karolpiczak/ESC-10, with
  ROOT/001 - Dog bark/1-100032-A.ogg and so on""",
    ),
    "speech_commands_v1": _speech_commands(1, {"train": 51088, "dev": 6798, "test": 6835}, 30),
    "speech_commands_v2": _speech_commands(2, {"train": 84843, "dev": 9981, "test": 11005}, 35),
    "urban8k_scenes": DataSet(
        title="UrbanSound8K",
        folder="UrbanSound8K",
        read=_read_urban_sound,
        released=dict(zip((f"fold{i}" for i in range(1, 11)), (873, 888, 925, 990, 936, 823, 838, 806, 816, 837))),
        classes=10,
        layout="""\
UrbanSound8K is on https://urbansounddataset.weebly.com/urbansound8k.html. Download and unpack it, and give the folder
ROOT with
  ROOT/metadata/UrbanSound8K.csv
  ROOT/audio/fold1/101415-3-0-2.wav and so on, to fold10""",
        scenes=True,
    ),
}
