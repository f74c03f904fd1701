"""IEMOCAP, by emotion: SUPERB's emotion recognition."""

import json
import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from ...audio import SAMPLE_RATE
from ...files import new_folder, write_text
from ..report import (
    CorpusError,
    CorpusReport,
    absolute,
    compare,
    first,
    override,
    problems_reported,
    read_headers,
    read_text,
    recordings_of,
    require_disjoint,
    require_folder,
)
from .utterances import Utterance, write_wav

NAME = "IEMOCAP (emotion recognition)"
SESSIONS = ("Session1", "Session2", "Session3", "Session4", "Session5")
EMOTIONS = {"neu": 0, "hap": 1, "ang": 2, "sad": 3}

# Utterances of the four emotions in the released corpus.
RELEASED = {"neu": 1708, "hap": 1636, "ang": 1103, "sad": 1084}
RELEASED_SESSIONS = dict(zip(SESSIONS, (1085, 1023, 1151, 1031, 1241)))


def check(root, metadata=None) -> CorpusReport:
    """Check IEMOCAP and its metadata for s3prl's ``emotion`` downstream.

    Args:
        root: folder with ``Session1`` to ``Session5``, each with ``sentences/wav/<dialog>/<turn>.wav`` and
            ``dialog/EmoEvaluation/<dialog>.txt``.
        metadata: folder with ``Session1/train_meta_data.json``, ``Session1/test_meta_data.json`` and so on, as
            ``build_emotion_metadata`` writes them. Default: ``meta_data`` in root.

    Returns:
        The report, with utterances per session and emotion. Nothing about the corpus raises.
    """
    root = absolute(root)
    metadata = absolute(metadata) if metadata else root / "meta_data"
    report = CorpusReport(NAME, root, override({
        "datarc.root": root, "datarc.meta_data": metadata}))
    with problems_reported(report):
        require_folder(report)
        turns = {}
        for session in SESSIONS:
            with problems_reported(report):
                turns[session] = labelled_turns(root, session)
        for session, entries in turns.items():
            counts = Counter(entry["label"] for entry in entries)
            report.counts[session] = {emotion: counts[emotion] for emotion in EMOTIONS}
            absent = [emotion for emotion in EMOTIONS if not counts[emotion]]
            if absent:
                report.problems.append(f"{root / session} has no utterance labelled {', '.join(absent)}; "
                                       "every session is a test fold and needs all four emotions.")
        as_labelled = _check_metadata(metadata, turns, report)
        require_disjoint(report, "unpack the whole of IEMOCAP anew")
        _check_one_rate([root / entry["path"] for entries in turns.values() for entry in entries], report)
        total = {emotion: sum(counts[emotion] for counts in report.counts.values()) for emotion in EMOTIONS}
        compare(report, total, RELEASED)
        report.released = report.released and as_labelled
    return report


def build_emotion_metadata(root, out) -> None:
    """Write the metadata of IEMOCAP's five folds, as s3prl's ``emotion`` downstream reads it.

    Session N's ``test_meta_data.json`` lists its own labelled turns, its ``train_meta_data.json`` those of the
    other four. The turns are those labelled neutral, happy, excited (counted as happy), angry or sad that
    have a wav.

    The order is that of the sorted label files. It matters: s3prl takes its development set from this list by
    position. s3prl's own script lists the label files in the order of os.listdir, which differs between
    machines, and so does its train/dev split; the metadata published in s3prl's repository has the order of
    its authors' machine. To repeat published runs to the utterance, use theirs instead.

    Args:
        root: IEMOCAP's folder, with ``Session1`` to ``Session5``.
        out: folder for the metadata; files of the same name in it are replaced.

    Raises:
        CorpusError: a session, its wavs or its labels are missing or unreadable. Nothing is written then.
    """
    turns = {session: labelled_turns(Path(root), session) for session in SESSIONS}
    for session in SESSIONS:
        for name, content in _metadata_of(session, turns).items():
            write_text(json.dumps(content), Path(out) / session / name)


def labelled_turns(root: Path, session: str) -> list[dict]:
    """A session's utterances of the four emotions, in the order of its sorted label files.

    Args:
        root: IEMOCAP's folder.
        session: ``Session1`` to ``Session5``.

    Returns:
        Their entries for the metadata: path relative to root, label and speaker.

    Raises:
        CorpusError: wavs or labels are missing or unreadable, or there is no such utterance.
    """
    wav_folder = root / session / "sentences" / "wav"
    label_folder = root / session / "dialog" / "EmoEvaluation"
    for folder, content in (wav_folder, "the utterances"), (label_folder, "the emotion labels"):
        if not os.path.isdir(folder):
            raise CorpusError(f"{folder}, the folder of {content} of {session}, is missing; unpack the whole "
                              f"of IEMOCAP so that {root} holds Session1 to Session5.")
    wavs = {path.stem: path.relative_to(root).as_posix() for path in sorted(wav_folder.rglob("*.wav"))}
    # Files with a leading dot are what macOS leaves in archives; they hold no labels.
    label_files = sorted(path for path in label_folder.glob("*.txt") if not path.name.startswith("."))
    turns = []
    for label_file in label_files:
        for number, line in enumerate(read_text(label_file).split("\n"), 1):
            if not line.startswith("["):
                continue
            fields = [text for text in line.split("\t") if text]
            if len(fields) < 3:
                raise CorpusError(f"{label_file}, line {number}, is not '[start - end] turn label ...' "
                                  "separated by tabs; restore the file from the archive.")
            turn, label = fields[1], fields[2].replace("exc", "hap")
            if label in EMOTIONS and turn in wavs:
                speaker = turn.split("_")[0]
                turns.append({"path": wavs[turn], "label": label, "speaker": speaker})
    if not turns:
        raise CorpusError(f"{root / session} has no labelled utterance: {len(label_files)} label file(s) in "
                          f"{label_folder}, {len(wavs)} wav(s) in {wav_folder}; unpack the whole of IEMOCAP.")
    return turns


def labelled_utterances(root: Path):
    """Yields path, emotion, session and speaker of every utterance in the metadata."""
    for session in SESSIONS:
        content = json.loads((root / "meta_data" / session / "test_meta_data.json").read_text())
        for entry in content["meta_data"]:
            turn = Path(entry["path"]).stem.rpartition("_")[2]  # such as F003
            yield root / entry["path"], entry["label"], session, session + turn[:1]


def find_test_set(corpus: Path, session: str) -> dict[str, str]:
    """s3prl's names of a session's utterances -> where the corpus has them."""
    turns = labelled_turns(corpus, session)
    return {Path(turn["path"]).stem: str(corpus / turn["path"]) for turn in turns}


def write_iemocap(out, utterances: Iterable[Utterance]) -> None:
    """Write IEMOCAP's wavs and emotion labels, and the metadata that s3prl needs in ``OUT/meta_data``.

    Args:
        out: a folder that does not exist yet or is empty.
        utterances: with emotions ``neu``, ``hap``, ``exc``, ``ang``, ``sad`` or another of IEMOCAP's as labels,
            speakers such as ``Ses01F`` and scenes such as ``impro01``.

    Raises:
        CorpusError: a session has no utterance, so that there are no five folds.
        FileExistsError: ``out`` exists and is not empty.
    """
    turns = defaultdict(list)
    with new_folder(out) as folder:
        for utterance in utterances:
            session = folder / f"Session{int(utterance.speaker[3:5])}"
            dialog = f"{utterance.speaker}_{utterance.recording}"
            label_file = session / "dialog" / "EmoEvaluation" / f"{dialog}.txt"
            turn = f"{dialog}_{utterance.speaker[-1]}{len(turns[label_file]):03d}"
            write_wav(session / "sentences" / "wav" / dialog / f"{turn}.wav", utterance.samples)
            turns[label_file].append((turn, utterance.label, len(utterance.samples) / SAMPLE_RATE))
        for label_file, labelled in turns.items():
            write_text(_emotion_labels(labelled), label_file)
        build_emotion_metadata(folder, folder / "meta_data")


def _metadata_of(session: str, turns: dict[str, list[dict]]) -> dict[str, dict]:
    others = [turn for other in turns if other != session for turn in turns[other]]
    return {f"{split}_meta_data.json": {"labels": EMOTIONS, "meta_data": entries}
            for split, entries in (("train", others), ("test", turns.get(session, [])))}


def _check_metadata(metadata: Path, turns: dict[str, list[dict]], report: CorpusReport) -> bool:
    """True if the folds are those of the label files, in whatever order; flaws go into the report."""
    root, out = shlex.quote(str(report.root)), shlex.quote(str(metadata))
    remedy = f"`ssamba corpora emotion-metadata {root} --out {out}` writes it"
    if not os.path.isdir(metadata):
        report.problems.append(f"The metadata folder {metadata} is missing; {remedy}.")
        return False
    listed, in_order, as_labelled = set(), True, True
    for session in SESSIONS:
        for name, expected in _metadata_of(session, turns).items():
            path = metadata / session / name
            content = _read_metadata(path, remedy, report)
            if content is None:
                as_labelled = False
                continue
            report.texts[f"{session}/{name}"] = path
            wavs = {wav for wav, _ in _labels(content)}
            _check_fold(path, session, wavs, remedy, report)
            listed |= wavs
            in_order = in_order and content == expected
            as_labelled = as_labelled and _labels(content) == _labels(expected)
    report.recordings = {session: recordings_of({wav: report.root / wav for wav in sorted(listed)
                                                 if _session(wav) == session}) for session in SESSIONS}
    known = {entry["path"] for entries in turns.values() for entry in entries}
    if missing := sorted(wav for wav in listed - known if not os.path.isfile(report.root / wav)):
        report.problems.append(f"Utterances of the metadata in {metadata} are not in {report.root}: "
                               f"{first(missing)}; unpack them, or build the metadata anew: {remedy}.")
    elif not as_labelled:
        report.notes.append(f"The metadata in {metadata} has other utterances or labels than the label files of "
                            "IEMOCAP; compare accuracies only between runs with the same metadata.")
    elif not in_order:
        report.notes.append("The metadata has another order than `ssamba corpora emotion-metadata` writes. s3prl takes "
                            "its development set from it by position, so compare accuracies only between runs with the "
                            "same metadata.")
    return as_labelled


def _read_metadata(path: Path, remedy: str, report: CorpusReport) -> dict | None:
    """A file of the metadata, or None where nothing can be read; flaws go into the report."""
    try:
        content = json.loads(read_text(path))
        labels, entries = content["labels"], _labels(content)
    except CorpusError as error:
        report.problems.append(f"{error} It belongs to the metadata; {remedy}.")
        return None
    except (ValueError, KeyError, TypeError):
        report.problems.append(f"{path} is not a JSON object with 'labels' and 'meta_data'; {remedy} anew.")
        return None
    if not entries or labels != EMOTIONS or not {label for _, label in entries} <= set(EMOTIONS):
        report.problems.append(f"{path} lists {len(entries)} utterances under the labels {labels}, where s3prl needs "
                               f"utterances under {EMOTIONS}; {remedy} anew.")
    return content


def _check_fold(path: Path, session: str, wavs: set[str], remedy: str, report: CorpusReport):
    """A session's test list has its utterances only, its train list those of the others."""
    is_test = path.name.startswith("test")
    if misplaced := sorted(wav for wav in wavs if (_session(wav) == session) != is_test):
        where = f"outside {session}" if is_test else f"of {session}, its test set"
        report.problems.append(f"{path} lists {len(misplaced):,} utterances {where}: {first(misplaced)}; {remedy} "
                               "anew.")


def _session(wav: str) -> str:
    return os.path.normpath(wav).split(os.sep)[0]


def _labels(content: dict) -> set[tuple[str, str]]:
    return {(str(entry["path"]), str(entry["label"])) for entry in content["meta_data"]}


def _check_one_rate(paths: list[Path], report: CorpusReport):
    examples = {}
    for path, header in read_headers(paths, report):
        examples.setdefault(header.rate, path)
        if header.channels != 1:
            report.problems.append(f"{path} has {header.channels} channels, and s3prl does not mix down this "
                                   "corpus; convert all of it to mono.")
            break
    if len(examples) > 1:
        listing = ", ".join(f"{path} at {rate} Hz" for rate, path in examples.items())
        report.problems.append(f"The utterances differ in sample rate ({listing}), and s3prl resamples all "
                               "of them as if they had the first one's; convert them to one rate.")


def _emotion_labels(turns: list[tuple[str, str, float]]) -> str:
    """A file of IEMOCAP's EmoEvaluation; the ratings of valence, activation and dominance are all 3 of 5."""
    lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
    start = 0.0
    for turn, label, seconds in turns:
        end = start + seconds
        lines += [f"[{start:.4f} - {end:.4f}]\t{turn}\t{label}\t[3.0000, 3.0000, 3.0000]",
                  "A-E1:\tval 3; act 3; dom  3;\t()", ""]
        start = end
    return "\n".join(lines) + "\n"
