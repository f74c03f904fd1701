"""IEMOCAP with emotions: SUPERB's emotion recognition."""

import json
import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from ...audio import SAMPLE_RATE
from ...files import new_folder, write_text
from ..report import CorpusError, CorpusReport, absolute, first, override, read_text, recordings_of
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
        metadata: folder with ``Session1/train_meta_data.json``, ``Session1/test_meta_data.json`` and so on, written by
            ``build_emotion_metadata``. Default: ``meta_data`` in root.
    """
    root = absolute(root)
    metadata = absolute(metadata) if metadata else root / "meta_data"
    report = CorpusReport(NAME, root, override({"datarc.root": root, "datarc.meta_data": metadata}))
    with report.checking("unpack all of IEMOCAP again"):
        report.require_folder()
        turns = {}
        for session in SESSIONS:
            with report.collecting():
                turns[session] = labelled_turns(root, session)
        for session, entries in turns.items():
            counts = Counter(entry["label"] for entry in entries)
            report.counts[session] = {emotion: counts[emotion] for emotion in EMOTIONS}
            absent = [emotion for emotion in EMOTIONS if not counts[emotion]]
            if absent:
                report.problems.append(f"{root / session} has no utterance labelled {', '.join(absent)}, but "
                                       "every session is a test fold and needs all four emotions.")
        as_labelled = _check_metadata(metadata, turns, report)
        _check_one_rate([root / entry["path"] for entries in turns.values() for entry in entries], report)
        total = {emotion: sum(counts[emotion] for counts in report.counts.values()) for emotion in EMOTIONS}
        report.compare(total, RELEASED)
        report.released = report.released and as_labelled
    return report


def build_emotion_metadata(root, out) -> None:
    """Write the metadata of IEMOCAP's five folds for s3prl's ``emotion`` downstream.

    Session N's ``test_meta_data.json`` lists its own labelled turns; its ``train_meta_data.json`` lists those of the
    other four sessions. It includes turns with a wav that are labelled neutral, happy, excited (counted as happy),
    angry or sad.

    The order is that of the sorted label files. It matters, because s3prl takes its development set from this list by
    position. s3prl's own script lists the label files in the order of os.listdir, so its train/dev split differs
    between machines; the metadata published in s3prl's repository has the order of its authors' machine. To reproduce
    published runs exactly, use that metadata instead.

    Args:
        root: IEMOCAP's folder, with ``Session1`` to ``Session5``.
        out: folder for the metadata; existing files of the same names are replaced.

    Raises:
        CorpusError: If a session, its wavs or its labels are missing or unreadable. Nothing is written then.
    """
    turns = {session: labelled_turns(Path(root), session) for session in SESSIONS}
    for session in SESSIONS:
        for name, content in _metadata_of(session, turns).items():
            write_text(json.dumps(content), Path(out) / session / name)


def labelled_turns(root: Path, session: str) -> list[dict]:
    """Return the metadata's entries for a session's utterances with the four emotions: path relative to root, label and
    speaker, in the order of the sorted label files.

    Raises:
        CorpusError: If wavs or labels are missing or unreadable, or there are no such utterances.
    """
    wav_folder = root / session / "sentences" / "wav"
    label_folder = root / session / "dialog" / "EmoEvaluation"
    for folder, content in (wav_folder, "the utterances"), (label_folder, "the emotion labels"):
        if not os.path.isdir(folder):
            raise CorpusError(f"{folder}, the folder with {content} of {session}, is missing; unpack all of IEMOCAP "
                              f"so that {root} contains Session1 to Session5.")
    wavs = {path.stem: path.relative_to(root).as_posix() for path in sorted(wav_folder.rglob("*.wav"))}
    # macOS adds files with a leading dot to archives; they contain no labels.
    label_files = sorted(path for path in label_folder.glob("*.txt") if not path.name.startswith("."))
    turns = []
    for label_file in label_files:
        for number, line in enumerate(read_text(label_file).split("\n"), 1):
            if not line.startswith("["):
                continue
            fields = [text for text in line.split("\t") if text]
            if len(fields) < 3:
                raise CorpusError(f"{label_file}, line {number}, is not '[start - end] turn label ...' "
                                  "separated by tabs. Restore the file from the archive.")
            turn, label = fields[1], fields[2].replace("exc", "hap")
            if label in EMOTIONS and turn in wavs:
                speaker = turn.split("_")[0]
                turns.append({"path": wavs[turn], "label": label, "speaker": speaker})
    if not turns:
        raise CorpusError(f"{root / session} has no labelled utterances: {len(label_files)} label file(s) in "
                          f"{label_folder}, {len(wavs)} wav(s) in {wav_folder}. Unpack all of IEMOCAP.")
    return turns


def labelled_utterances(root: Path):
    """Yield the path, emotion, session and speaker of every utterance in the metadata."""
    for session in SESSIONS:
        content = json.loads((root / "meta_data" / session / "test_meta_data.json").read_text())
        for entry in content["meta_data"]:
            turn = Path(entry["path"]).stem.rpartition("_")[2]  # such as F003
            yield root / entry["path"], entry["label"], session, session + turn[:1]


def find_test_set(corpus: Path, session: str) -> dict[str, str]:
    """Return the locations of a session's utterances, by s3prl's names for them."""
    turns = labelled_turns(corpus, session)
    return {Path(turn["path"]).stem: str(corpus / turn["path"]) for turn in turns}


def write_iemocap(out, utterances: Iterable[Utterance]) -> None:
    """Write IEMOCAP's wavs and emotion labels, and the metadata that s3prl needs in ``OUT/meta_data``.

    Args:
        out: a new or empty folder; for any other, a FileExistsError is raised.
        utterances: utterances with IEMOCAP's emotions (``neu``, ``hap``, ``exc``, ``ang``, ``sad`` or others) as
            labels, speakers such as ``Ses01F`` and scenes such as ``impro01``.

    Raises:
        CorpusError: If a session has no utterances, because five folds are needed.
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
    """Return True if the folds match the label files, in any order; add problems to the report."""
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
        report.problems.append(f"Utterances in the metadata in {metadata} are not in {report.root}: "
                               f"{first(missing)}; unpack them, or rebuild the metadata: {remedy}.")
    elif not as_labelled:
        report.notes.append(f"Utterances or labels in the metadata in {metadata} differ from IEMOCAP's label files. "
                            "Compare accuracies only between runs with the same metadata.")
    elif not in_order:
        report.notes.append("The metadata's order differs from that of `ssamba corpora emotion-metadata`. s3prl takes "
                            "its development set from it by position, so compare accuracies only between runs with the "
                            "same metadata.")
    return as_labelled


def _read_metadata(path: Path, remedy: str, report: CorpusReport) -> dict | None:
    """Return a file of the metadata, or None if it cannot be read; add problems to the report."""
    try:
        content = json.loads(read_text(path))
        labels, entries = content["labels"], _labels(content)
    except CorpusError as error:
        report.problems.append(f"{error} It is part of the metadata; {remedy}.")
        return None
    except (ValueError, KeyError, TypeError):
        report.problems.append(f"{path} is not a JSON object with 'labels' and 'meta_data'; {remedy} again.")
        return None
    if not entries or labels != EMOTIONS or not {label for _, label in entries} <= set(EMOTIONS):
        report.problems.append(f"{path} lists {len(entries)} utterances with the labels {labels}, but s3prl needs "
                               f"utterances with {EMOTIONS}; {remedy} again.")
    return content


def _check_fold(path: Path, session: str, wavs: set[str], remedy: str, report: CorpusReport):
    """Check that a session's test list has only its own utterances, and its train list only those of the others."""
    is_test = path.name.startswith("test")
    misplaced = sorted(wav for wav in wavs if (_session(wav) == session) != is_test)
    where = f"outside {session}" if is_test else f"of {session}, its test set"
    report.add_problem(f"{path} lists {len(misplaced):,} utterances {where}", misplaced, f"{remedy} again")


def _session(wav: str) -> str:
    return os.path.normpath(wav).split(os.sep)[0]


def _labels(content: dict) -> set[tuple[str, str]]:
    return {(str(entry["path"]), str(entry["label"])) for entry in content["meta_data"]}


def _check_one_rate(paths: list[Path], report: CorpusReport):
    examples = {}
    for path, header in report.read_headers(paths):
        examples.setdefault(header.rate, path)
        if header.channels != 1:
            report.problems.append(f"{path} has {header.channels} channels, but s3prl does not mix down this "
                                   "corpus; convert all of it to mono.")
            break
    if len(examples) > 1:
        listing = ", ".join(f"{path} at {rate} Hz" for rate, path in examples.items())
        report.problems.append(f"The utterances have different sample rates ({listing}), but s3prl resamples all "
                               "of them from the first one's rate; convert them to one rate.")


def _emotion_labels(turns: list[tuple[str, str, float]]) -> str:
    """Format a file of IEMOCAP's EmoEvaluation, with all ratings of valence, activation and dominance at 3 of 5."""
    lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
    start = 0.0
    for turn, label, seconds in turns:
        end = start + seconds
        lines += [f"[{start:.4f} - {end:.4f}]\t{turn}\t{label}\t[3.0000, 3.0000, 3.0000]",
                  "A-E1:\tval 3; act 3; dom  3;\t()", ""]
        start = end
    return "\n".join(lines) + "\n"
