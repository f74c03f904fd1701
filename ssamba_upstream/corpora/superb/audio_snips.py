"""Audio SNIPS with words and slots: SUPERB's slot filling."""

import re
from collections.abc import Iterable
from pathlib import Path

from ...files import new_folder, write_text
from ..report import CorpusError, CorpusReport, absolute, first, override, read_text, recordings_of
from .utterances import Utterance, write_wav

TRANSCRIPTS = "all.iob.snips.txt"
SLOTS = "slots.txt"
FOLDERS = {"train": "train", "dev": "valid", "test": "test"}
SPEAKERS = {
    "train": ("Ivy", "Joanna", "Joey", "Justin", "Kendra", "Kimberly", "Matthew", "Salli"),
    "dev": ("Aditi", "Amy", "Geraint", "Nicole"),
    "test": ("Brian", "Emma", "Raveena", "Russell"),
}
RELEASED = {"train": 104672, "dev": 2800, "test": 2800}
REMEDY = ("unpack s3prl's preprocessed Audio SNIPS there, whose address is under SF in "
          "https://github.com/s3prl/s3prl/blob/main/s3prl/downstream/docs/superb.md")
ADVICE = f"To get it, {REMEDY}."


def check(root, _=None) -> CorpusReport:
    """Check Audio SNIPS for s3prl's ``ctc`` downstream, with characters and slots.

    Args:
        root: folder with ``train``, ``valid`` and ``test``, each with ``<speaker>-....wav``; ``all.iob.snips.txt``,
            whose lines are "<utterance> BOS <words> EOS", a tab and a tag for each of these; and ``slots.txt``, with
            one slot per line after the first.
    """
    root = absolute(root)
    report = CorpusReport("Audio SNIPS (slot filling)", root,
                          override({"corpus.path": root, "text.slots_file": root / SLOTS}))
    with report.checking(REMEDY, RELEASED, one_format=True):
        report.require_folder()
        transcripts = _check_transcripts(report)
        for split in FOLDERS:
            _check_split(split, transcripts, report)
        report.texts = {name: root / name for name in (TRANSCRIPTS, SLOTS)}
    return report


def find_test_set(corpus: Path) -> dict[str, str]:
    """Return the locations of the test set's utterances, by s3prl's names for them."""
    transcripts = _transcripts(corpus)
    found = {path.stem: str(path) for path in _recordings(corpus, "test") if path.stem in transcripts}
    if not found:
        raise CorpusError(f"{corpus} has no test/<speaker>-....wav of {', '.join(SPEAKERS['test'])}. Give the folder "
                          "of Audio SNIPS.")
    return found


def write_audio_snips(out, utterances: Iterable[Utterance], slots: list[str]) -> None:
    """Write Audio SNIPS: wavs, transcripts and slots.

    Args:
        out: a new or empty folder; for any other, a FileExistsError is raised.
        utterances: utterances by the split's speakers, with transcript lines, without the utterance's name, as labels.
        slots: names of the slots.
    """
    lines = []
    with new_folder(out) as folder:
        for utterance in utterances:
            name = f"{utterance.speaker}-{utterance.split}-{len(lines):05d}"
            write_wav(folder / FOLDERS[utterance.split] / f"{name}.wav", utterance.samples)
            lines.append(f"{name} {utterance.label}\n")
        write_text("".join(lines), folder / TRANSCRIPTS)
        write_text("\n".join(["O", *slots]), folder / SLOTS)


def _check_transcripts(report: CorpusReport) -> dict[str, str]:
    """Return the transcripts by utterance; report malformed ones and unknown slots."""
    transcripts, malformed, tags = _transcripts(report.root), [], set()
    for utterance, line in transcripts.items():
        words, tab, tagged = line.partition("\t")
        words, tagged = words.split(" "), tagged.split(" ")
        if tab and len(words) == len(tagged) > 2 and (words[0], words[-1]) == ("BOS", "EOS"):
            tags.update(tagged[1:-1])
        else:
            malformed.append(utterance)
    report.add_problem(f"{report.root / TRANSCRIPTS} has lines that are not '<utterance> BOS <words> EOS', a tab and a "
                       "tag per word", malformed, REMEDY)
    slots = re.split(r"\r?\n", read_text(report.root / SLOTS, ADVICE))[1:]
    report.add_problem(f"{report.root / SLOTS} lacks slots of {TRANSCRIPTS}", sorted(tags - {"O", *slots}), REMEDY)
    return transcripts


def _check_split(split: str, transcripts: dict[str, str], report: CorpusReport):
    recordings = _recordings(report.root, split)
    without = [str(path) for path in recordings if path.stem not in transcripts]
    if without:
        report.notes.append(f"{len(without):,} of the {len(recordings):,} recordings in {split} have no line in "
                            f"{TRANSCRIPTS}, so s3prl skips them: {first(without)}.")
    used = [path for path in recordings if path.stem in transcripts]
    speakers = {speaker for speaker in SPEAKERS[split] if any(path.stem.startswith(speaker) for path in used)}
    report.counts[split] = {"utterances": len(used), "speakers": len(speakers)}
    report.recordings[split] = recordings_of({path.relative_to(report.root).as_posix(): path for path in used})


def _recordings(root: Path, split: str) -> list[Path]:
    return [path for path in sorted((root / FOLDERS[split]).rglob("*.wav")) if path.stem.startswith(SPEAKERS[split])]


def _transcripts(root: Path) -> dict[str, str]:
    lines = read_text(root / TRANSCRIPTS, ADVICE).splitlines()
    return {utterance: text for utterance, _, text in (line.strip().partition(" ") for line in lines) if utterance}
