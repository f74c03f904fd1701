"""Is a corpus laid out as s3prl 0.4.18 reads it? Checks for SUPERB's SID, ER and KS, and IEMOCAP's metadata.

s3prl meets a missing file with an IndexError after minutes of searching, or hours into a run. The checks
restate the rules of its `voxceleb1`, `emotion` and `speech_commands` downstreams and report at once all that
would go wrong. Audio is judged by the headers of a few files, spread evenly over the corpus.
"""

import glob
import hashlib
import json
import os
import re
import shlex
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..audio import SAMPLE_RATE, AudioError, read_header

SAMPLED_FILES = 40

SPLITS = {"1": "train", "2": "dev", "3": "test"}
SPLIT_FILES = ("veri_test_class.txt", "iden_split.txt")
SPEAKERS = 1251

SESSIONS = ("Session1", "Session2", "Session3", "Session4", "Session5")
EMOTIONS = {"neu": 0, "hap": 1, "ang": 2, "sad": 3}

KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
CLASSES = KEYWORDS + ("_unknown_", "_silence_")
BACKGROUND_NOISE = "_background_noise_"

# Utterances in the released corpora; train and dev of Speech Commands without its background noise.
RELEASED_VOXCELEB1 = {"train": 138361, "dev": 6904, "test": 8251}
RELEASED_IEMOCAP = {"neu": 1708, "hap": 1636, "ang": 1103, "sad": 1084}
RELEASED_IEMOCAP_SESSIONS = dict(zip(SESSIONS, (1085, 1023, 1151, 1031, 1241)))
RELEASED_SPEECH_COMMANDS = {
    "v0.01": {"train": 51088, "dev": 6798, "test": 3081},
    "v0.02": {"train": 84843, "dev": 9981, "test": 4890},
}


class CorpusError(ValueError):
    """A corpus is not laid out as s3prl needs it; the message says what is missing and what to do."""


@dataclass
class CorpusReport:
    """What a check found.

    Attributes:
        corpus: name of the corpus and its task.
        root: the folder that was checked.
        override: value for the `-o` argument of s3prl's run_downstream that points a config at this corpus.
        counts: utterances by split or session, and in it by class.
        problems: sentences, each about something that would stop s3prl or change what it measures.
        notes: sentences worth reading that ask for no action.
    """

    corpus: str
    root: Path
    override: str
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True when there are no problems."""
        return not self.problems

    def __str__(self):
        verdict = "laid out as s3prl needs it" if self.ok else f"{len(self.problems)} problem(s)"
        lines = [f"{self.corpus} in {self.root}: {verdict}"]
        for part, counts in self.counts.items():
            lines.append(f"  {part:9}" + ", ".join(f"{name} {count:,}" for name, count in counts.items()))
        lines += [f"  Problem: {problem}" for problem in self.problems]
        lines += [f"  Note: {note}" for note in self.notes]
        if self.ok:
            lines.append(f"  Run with: -o {shlex.quote(self.override)}")
        return "\n".join(lines)


def check_speaker_identification(root, split_file=None) -> CorpusReport:
    """Check VoxCeleb1 for s3prl's `voxceleb1` downstream.

    Args:
        root: folder with `dev/wav/id10001/<video>/<n>.wav` and the like; the first level may have any names.
        split_file: text file with lines `<1|2|3> id10001/<video>/<n>.wav` for train, dev and test: VoxCeleb's
            `iden_split.txt`, which s3prl calls `veri_test_class.txt`. Default: a file of either name in root.

    Returns:
        The report, with utterances and speakers per split. Nothing about the corpus raises.
    """
    root = _absolute(root)
    split_file = _absolute(split_file or find_split_file(root))
    report = CorpusReport("VoxCeleb1 (speaker identification)", root,
                          _override(file_path=root, meta_data=split_file))
    with _problems_reported(report):
        _require_folder(report)
        utterances = _check_split_file(split_file, report)
        listed = [path for paths in utterances.values() for path in paths.values()]
        found = _voxceleb_files(root)
        missing = [path for path in listed if path not in found]
        if missing:
            report.problems.append(f"{len(missing):,} of the {len(listed):,} utterances in {split_file} are "
                                   f"not under {root}/*/wav/: {_first(missing)}; unpack the archives they "
                                   "are in (dev, test).")
        for path, header in _read_headers([found[path] for path in listed if path in found], report):
            if header.rate != SAMPLE_RATE or header.channels != 1:
                report.problems.append(f"{path} has {header.rate} Hz and {header.channels} channel(s), "
                                       "and s3prl neither resamples nor mixes down this corpus; convert all "
                                       f"of it to {SAMPLE_RATE} Hz mono.")
                break
        _compare(report, {split: len(paths) for split, paths in utterances.items()}, RELEASED_VOXCELEB1)
    return report


def check_emotion(root, metadata=None) -> CorpusReport:
    """Check IEMOCAP and its metadata for s3prl's `emotion` downstream.

    Args:
        root: folder with `Session1` to `Session5`, each with `sentences/wav/<dialog>/<turn>.wav` and
            `dialog/EmoEvaluation/<dialog>.txt`.
        metadata: folder with `Session1/train_meta_data.json`, `Session1/test_meta_data.json` and so on, as
            `build_emotion_metadata` writes them. Default: `meta_data` in root.

    Returns:
        The report, with utterances per session and emotion. Nothing about the corpus raises.
    """
    root = _absolute(root)
    metadata = _absolute(metadata) if metadata else root / "meta_data"
    report = CorpusReport("IEMOCAP (emotion recognition)", root, _override(root=root, meta_data=metadata))
    with _problems_reported(report):
        _require_folder(report)
        turns = {}
        for session in SESSIONS:
            with _problems_reported(report):
                turns[session] = labelled_turns(root, session)
        for session, entries in turns.items():
            counts = Counter(entry["label"] for entry in entries)
            report.counts[session] = {emotion: counts[emotion] for emotion in EMOTIONS}
            absent = [emotion for emotion in EMOTIONS if not counts[emotion]]
            if absent:
                report.problems.append(f"{root / session} has no utterance labelled {', '.join(absent)}; "
                                       "every session is a test fold and needs all four emotions.")
        _check_metadata(metadata, turns, report)
        _check_one_rate([root / entry["path"] for entries in turns.values() for entry in entries], report)
        total = {emotion: sum(counts[emotion] for counts in report.counts.values()) for emotion in EMOTIONS}
        _compare(report, total, RELEASED_IEMOCAP)
    return report


def build_emotion_metadata(root, out) -> None:
    """Write the metadata of IEMOCAP's five folds, as s3prl's `emotion` downstream reads it.

    Session N's `test_meta_data.json` lists its own labelled turns, its `train_meta_data.json` those of the
    other four. The turns are those labelled neutral, happy, excited (counted as happy), angry or sad that
    have a wav.

    The order is that of the sorted label files. It matters: s3prl takes its development set from this list by
    position. s3prl's own script lists the label files in the order of os.listdir, which differs between
    machines, and so does its train/dev split; the metadata published in s3prl's repository has the order of
    its authors' machine. To repeat published runs to the utterance, use theirs instead.

    Args:
        root: IEMOCAP's folder, with `Session1` to `Session5`.
        out: folder for the metadata; files of the same name in it are replaced.

    Raises:
        CorpusError: a session, its wavs or its labels are missing or unreadable. Nothing is written then.
    """
    turns = {session: labelled_turns(Path(root), session) for session in SESSIONS}
    for session in SESSIONS:
        folder = Path(out) / session
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in _metadata_of(session, turns).items():
            partial = folder / f"{name}.partial"
            partial.write_text(json.dumps(content), encoding="utf-8")
            os.replace(partial, folder / name)


def check_keyword_spotting(root, test_root=None) -> CorpusReport:
    """Check Speech Commands for s3prl's `speech_commands` downstream.

    Args:
        root: folder with `speech_commands_v0.01` (SUPERB's choice) or `speech_commands_v0.02`, and beside it
            `speech_commands_test_set_v0.01` or `_v0.02`; or, with test_root, the training folder itself.
        test_root: folder of the test set, with one folder per class.

    Returns:
        The report, with utterances per split and class. Nothing about the corpus raises.
    """
    root = _absolute(root)
    version = next((version for version in RELEASED_SPEECH_COMMANDS
                    if os.path.isdir(root / f"speech_commands_{version}")), None)
    train_root = root / f"speech_commands_{version}" if version else root
    test_root = _absolute(test_root) if test_root else root / f"speech_commands_test_set_{version or 'v0.01'}"
    report = CorpusReport("Speech Commands (keyword spotting)", root,
                          _override(speech_commands_root=train_root, speech_commands_test_root=test_root))
    with _problems_reported(report):
        _require_folder(report)
        backgrounds = sorted((train_root / BACKGROUND_NOISE).glob("*.wav"))
        for path, header in _read_headers(backgrounds, report, sampled=False):
            if header.duration < 1:
                report.problems.append(f"{path} lasts {header.duration:.2f} s; s3prl cuts "
                                       "one second out of every background noise and stops at a shorter one, "
                                       "so delete it.")
        recordings = {split: Counter() for split in ("train", "dev", "test")}
        paths = _count_training_words(train_root, recordings) + _count_test_set(test_root, recordings, report)
        found = {split: counts.total() for split, counts in recordings.items()}
        for split in ("train", "dev"):
            recordings[split]["_silence_"] += len(backgrounds)
        for split, counts in recordings.items():
            report.counts[split] = {name: counts[name] for name in CLASSES}
        _report_absent_classes(report, train_root, test_root)
        _read_headers(paths, report)
        if version:
            _compare(report, found, RELEASED_SPEECH_COMMANDS[version])
    return report


def find_split_file(root: Path) -> Path:
    """VoxCeleb1's split file in a folder, under either of its names; the first where there is neither."""
    name = next((name for name in SPLIT_FILES if os.path.isfile(root / name)), SPLIT_FILES[0])
    return root / name


def read_split_file(split_file: Path) -> tuple[dict[str, dict[int, str]], dict[int, str]]:
    """Read VoxCeleb1's split file.

    Returns:
        For train, dev and test the utterances, as `id10001/<video>/<n>.wav`, by their line's number; and the
        lines that are something else, by their number.

    Raises:
        CorpusError: the file cannot be read.
    """
    try:
        lines = _read_text(split_file).splitlines()
    except CorpusError as error:
        raise CorpusError(f"{error} The split file is https://www.robots.ox.ac.uk/~vgg/data/voxceleb/meta/"
                          f"iden_split.txt, which s3prl calls {SPLIT_FILES[0]}; save it in "
                          f"{split_file.parent} or pass its path.") from error
    utterances = {split: {} for split in SPLITS.values()}
    malformed = {}
    for number, line in enumerate(lines, 1):
        match = re.fullmatch(r"\s*([123])\s+(id\d{5}/[^/\s]+/[^/\s]+)\s*", line)
        if match:
            utterances[SPLITS[match[1]]][number] = match[2]
        else:
            malformed[number] = line
    return utterances, malformed


def labelled_turns(root: Path, session: str) -> list[dict]:
    """A session's utterances of the four emotions, in the order of its sorted label files.

    Args:
        root: IEMOCAP's folder.
        session: `Session1` to `Session5`.

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
        for number, line in enumerate(_read_text(label_file).split("\n"), 1):
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


def hash_split(file_name: str) -> str:
    """The split of a Speech Commands recording: "train", "dev", or "discarded" for the original test split.

    The corpus's own rule, which keeps every speaker in one split: the SHA-1 of the file name up to
    `_nohash_`, modulo 2 ** 27, as a percentage; below 10 is dev, below 20 test.
    """
    speaker = re.sub(r"_nohash_.*$", "", file_name)
    bucket = int(hashlib.sha1(speaker.encode()).hexdigest(), 16) % 2**27
    percentage = 100 * bucket / (2**27 - 1)
    return "dev" if percentage < 10 else "discarded" if percentage < 20 else "train"


@contextmanager
def _problems_reported(report: CorpusReport):
    """Turn the errors after which a check cannot go on into problems of the report."""
    try:
        yield
    except CorpusError as error:
        report.problems.append(str(error))
    except OSError as error:
        report.problems.append(f"{error.filename} cannot be read ({error.strerror}); check its permissions.")


def _require_folder(report: CorpusReport):
    if not os.path.isdir(report.root):
        state = "is not a folder" if os.path.exists(report.root) else "does not exist"
        raise CorpusError(f"{report.root} {state}; give the folder that holds "
                          f"{report.corpus.split(' (')[0]}.")


def _check_split_file(split_file: Path, report: CorpusReport) -> dict[str, dict[int, str]]:
    """The utterances of every split, see `read_split_file`; counts and flaws go into the report."""
    utterances, malformed = read_split_file(split_file)
    if malformed:
        listing = _first([f"line {number} ({line[:60]!r})" for number, line in malformed.items()])
        report.problems.append(f"{split_file} has lines that are not '<1|2|3> id10001/<video>/<n>.wav': "
                               f"{listing}; correct or delete them, empty ones as well.")
    speakers = {split: {path[:7] for path in paths.values()} for split, paths in utterances.items()}
    for digit, split in SPLITS.items():
        report.counts[split] = {"utterances": len(utterances[split]), "speakers": len(speakers[split])}
        if not utterances[split]:
            report.problems.append(f"{split_file} lists no utterance for {split}, on lines that begin with "
                                   f"{digit}; s3prl needs all three splits.")
    everyone = sorted(set().union(*speakers.values()))
    foreign = [name for name in everyone if not 1 <= int(name[2:]) - 10000 <= SPEAKERS]
    if foreign:
        report.problems.append(f"{split_file} names speakers outside id10001 to id{10000 + SPEAKERS}, the "
                               f"classes of s3prl's classifier: {_first(foreign)}; rename them into that "
                               "range.")
    return utterances


def _voxceleb_files(root: Path) -> dict[str, Path]:
    """Files by their path below `wav`, from one listing of the folder; s3prl lists it once per utterance."""
    names = [name.replace(os.sep, "/") for name in glob.iglob("*/wav/*/*/*", root_dir=root)]
    if not names:
        if any(root.glob("wav/id1*")):
            advice = f"give {root.parent}"
        elif any(root.glob("id1*")):
            advice = f"move the id1xxxx folders into {root}/dev/wav/"
        else:
            advice = "unpack vox1_dev_wav.zip into dev/ and vox1_test_wav.zip into test/"
        raise CorpusError(f"{root} holds no files <part>/wav/id10001/<video>/<n>.wav with exactly one "
                          f"folder, such as dev or test, above wav; {advice}.")
    return {name.split("/wav/", 1)[1]: root / name for name in names}


def _metadata_of(session: str, turns: dict[str, list[dict]]) -> dict[str, dict]:
    others = [turn for other in turns if other != session for turn in turns[other]]
    return {f"{split}_meta_data.json": {"labels": EMOTIONS, "meta_data": entries}
            for split, entries in (("train", others), ("test", turns.get(session, [])))}


def _check_metadata(metadata: Path, turns: dict[str, list[dict]], report: CorpusReport):
    remedy = f"`ssamba corpora emotion-metadata {shlex.quote(str(report.root))} {shlex.quote(str(metadata))}` writes it"
    if not os.path.isdir(metadata):
        report.problems.append(f"The metadata folder {metadata} is missing; {remedy}.")
        return
    known = {entry["path"] for entries in turns.values() for entry in entries}
    missing, as_built = set(), True
    for session in SESSIONS:
        for name, expected in _metadata_of(session, turns).items():
            path = metadata / session / name
            try:
                content = json.loads(_read_text(path))
                labels = content["labels"]
                entries = [(str(entry["path"]), str(entry["label"])) for entry in content["meta_data"]]
            except CorpusError as error:
                report.problems.append(f"{error} It belongs to the metadata; {remedy}.")
                continue
            except (ValueError, KeyError, TypeError):
                report.problems.append(f"{path} is not a JSON object with 'labels' and 'meta_data'; {remedy} "
                                       "anew.")
                continue
            if not entries or labels != EMOTIONS or not {label for _, label in entries} <= set(EMOTIONS):
                report.problems.append(f"{path} lists {len(entries)} utterances under the labels {labels}, "
                                       f"where s3prl needs utterances under {EMOTIONS}; {remedy} anew.")
            unknown = {wav for wav, _ in entries} - known
            missing.update(wav for wav in unknown if not os.path.isfile(report.root / wav))
            as_built = as_built and content == expected
    if missing:
        report.problems.append(f"{len(missing):,} utterances of the metadata in {metadata} are not in "
                               f"{report.root}: {_first(sorted(missing))}; unpack them, or build the "
                               f"metadata anew: {remedy}.")
    elif not as_built:
        report.notes.append("The metadata differs, in order at least, from what `ssamba corpora "
                            "emotion-metadata` writes. s3prl takes its development set from it by position, so compare "
                            "accuracies only between runs with the same metadata.")


def _check_one_rate(paths: list[Path], report: CorpusReport):
    examples = {}
    for path, header in _read_headers(paths, report):
        examples.setdefault(header.rate, path)
        if header.channels != 1:
            report.problems.append(f"{path} has {header.channels} channels, and s3prl does not mix down this "
                                   "corpus; convert all of it to mono.")
            break
    if len(examples) > 1:
        listing = ", ".join(f"{path} at {rate} Hz" for rate, path in examples.items())
        report.problems.append(f"The utterances differ in sample rate ({listing}), and s3prl resamples all "
                               "of them as if they had the first one's; convert them to one rate.")


def _count_training_words(train_root: Path, recordings: dict[str, Counter]) -> list[Path]:
    """Count the words as s3prl splits and labels them; returns the files that it will read."""
    used = []
    for path in sorted(train_root.glob("*/*.wav")):
        word, split = path.parent.name, hash_split(path.name)
        if word != BACKGROUND_NOISE and split != "discarded":
            recordings[split][word if word in CLASSES else "_unknown_"] += 1
            used.append(path)
    return used


def _count_test_set(test_root: Path, recordings: dict[str, Counter], report: CorpusReport) -> list[Path]:
    paths = sorted(test_root.glob("*/*.wav"))
    foreign = sorted({path.parent.name for path in paths} - set(CLASSES))
    if foreign:
        report.problems.append(f"{test_root} has folders that are none of the twelve classes "
                               f"({_first(foreign)}), and s3prl stops at the first file in them; remove "
                               "them.")
    recordings["test"].update(path.parent.name for path in paths if path.parent.name in CLASSES)
    return paths


def _report_absent_classes(report: CorpusReport, train_root: Path, test_root: Path):
    remedies = {
        "train": f"{train_root} needs a folder for each keyword, folders of other words for _unknown_, and "
                 f"{BACKGROUND_NOISE} for _silence_",
        "dev": "s3prl chooses it from the training folder by a hash of the file names up to '_nohash_', so "
               "keep the released files and names",
        "test": f"{test_root} needs a folder for each of the twelve classes, as speech_commands_test_set has "
                "them",
    }
    nowhere = {name for name in CLASSES if not any(counts[name] for counts in report.counts.values())}
    keywords_only = nowhere <= set(CLASSES) - set(KEYWORDS)
    if keywords_only and nowhere:
        report.notes.append(f"There is no utterance of {', '.join(sorted(nowhere))} at all: a task of fewer classes than "
                            "SUPERB's, whose accuracy compares with none that was published.")
    for split, counts in report.counts.items():
        absent = [name for name in CLASSES if not counts[name] and not (keywords_only and name in nowhere)]
        if absent:
            listing = "any class" if len(absent) == len(CLASSES) else ", ".join(absent)
            report.problems.append(f"The {split} split has no utterance of {listing}; {remedies[split]}.")


def _absolute(path) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        problem = f"{path} cannot be read ({error.strerror}); restore it or its permissions."
        raise CorpusError(problem) from error


def _read_headers(paths: list[Path], report: CorpusReport, sampled: bool = True) -> list[tuple]:
    """(path, header) of the audio files, or of an even sample; unreadable and empty ones become problems."""
    headers = []
    for path in paths[::-(-len(paths) // SAMPLED_FILES) if sampled and paths else 1]:
        try:
            headers.append((path, read_header(path)))
        except AudioError as error:
            report.problems.append(f"{error}; restore it from the archive.")
    return headers


def _first(items: list[str], count: int = 3) -> str:
    more = f" and {len(items) - count:,} more" if len(items) > count else ""
    return ", ".join(items[:count]) + more


def _compare(report: CorpusReport, found: dict[str, int], released: dict[str, int]):
    if found == released:
        report.notes.append("The counts are those of the released corpus.")
    else:
        counts = ", ".join(f"{name} {count:,}" for name, count in released.items())
        report.notes.append(f"This is not the whole released corpus, which has {counts} utterances.")


def _override(**paths: Path) -> str:
    """Options for s3prl's -o, which splits at ',,' and '=' and evaluates the values if they are Python."""
    options = []
    for key, path in paths.items():
        value = str(path)
        if not re.fullmatch(r"[\w./-]+", value):
            value = repr(value).replace("=", r"\x3d").replace(",", r"\x2c")
        options.append(f"config.downstream_expert.datarc.{key}={value}")
    return ",,".join(options)
