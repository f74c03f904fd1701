"""Libri2Mix in Kaldi's format, with who speaks when: SUPERB's speaker diarization."""

import math
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...audio import SAMPLE_RATE
from ...files import new_folder, write_text
from ..report import CorpusError, CorpusReport, absolute, override, read_text, recordings_of
from .kaldi import read_table, read_wav_scp
from .utterances import write_wav

SPLITS = ("train", "dev", "test")
SPEAKERS = 2  # per mixture
TEXTS = ("segments", "utt2spk", "reco2dur", "spk2utt")
TOLERANCE = 0.1  # seconds by which times may exceed a recording's end, and durations differ from its header
RELEASED = {"train": 13900, "dev": 3000, "test": 3000}
REMEDY = "write the folder with generate_librimix_sd.sh and prepare_diarization.py of https://github.com/s3prl/LibriMix"


@dataclass(frozen=True)
class Mixture:
    """A recording of several speakers, and who speaks when.

    Attributes:
        samples: (n,) float array at 16 kHz, between -1 and 1.
        turns: (speaker, start, end) in seconds.
        split: ``train``, ``dev`` or ``test``.
    """

    samples: np.ndarray
    turns: list[tuple[str, float, float]]
    split: str


def check(root, _=None) -> CorpusReport:
    """Check Libri2Mix in Kaldi's format for s3prl's ``diarization`` downstream.

    Args:
        root: folder with ``train``, ``dev`` and ``test``, each with ``wav.scp``, ``segments``, ``utt2spk``,
            ``spk2utt`` and ``reco2dur``; ``test`` also has dscore's reference, ``rttm``.
    """
    root = absolute(root)
    report = CorpusReport("Libri2Mix (speaker diarization)", root,
                          override({f"loaderrc.{split}_dir": root / split for split in SPLITS}))
    with report.checking(REMEDY, RELEASED, one_format=True):
        report.require_folder()
        speakers = {}
        for split in SPLITS:
            with report.collecting():
                speakers[split] = _check_split(split, report)
        report.check_speakers(speakers)
        if not os.path.isfile(root / "test" / "rttm"):
            report.notes.append(f"{root / 'test' / 'rttm'} is missing. dscore needs it for the diarization error rate; "
                                "predictions for the leaderboard do not.")
    return report


def find_test_set(corpus: Path) -> dict[str, str]:
    """Return the locations of the test set's mixtures by name; ``corpus`` can be the test set's folder."""
    folder = corpus / "test" if (corpus / "test").is_dir() else corpus
    mixtures = read_table(folder / "wav.scp", 2, REMEDY)
    if not mixtures:
        raise CorpusError(f"{folder / 'wav.scp'} is empty; {REMEDY}.")
    return {name: path for name, (path,) in mixtures.items()}


def write_diarization_mixtures(out, mixtures: Iterable[Mixture]) -> None:
    """Write mixtures in Kaldi's format, with the wavs in a folder for each split, see :func:`new_folder`."""
    out = absolute(out)
    files = defaultdict(list)
    with new_folder(out) as folder:
        for number, mixture in enumerate(mixtures):
            name, split, place = f"mix{number:04d}", folder / mixture.split, out / mixture.split
            write_wav(split / "wav" / f"{name}.wav", mixture.samples)
            files[split / "wav.scp"].append(f"{name} {place / 'wav' / name}.wav")
            files[split / "reco2dur"].append(f"{name} {len(mixture.samples) / SAMPLE_RATE}")
            for turn, (speaker, start, end) in enumerate(mixture.turns):
                utterance = f"{name}_{turn}"
                files[split / "segments"].append(f"{utterance} {name} {start:.3f} {end:.3f}")
                files[split / "utt2spk"].append(f"{utterance} {speaker}")
                files[split / "spk2utt"].append(f"{speaker} {utterance}")
                files[split / "rttm"].append(f"SPEAKER\t{name}\t1\t{start:.3f}\t{end - start:.3f}\t<NA>\t<NA>\t"
                                             f"{speaker}\t<NA>")
        for path, lines in files.items():
            write_text("".join(f"{line}\n" for line in lines), path)


def _check_split(split: str, report: CorpusReport) -> set[str]:
    """Return a split's speakers; add counts and problems to the report."""
    folder = report.root / split
    recordings = read_wav_scp(folder / "wav.scp", REMEDY, report)
    report.recordings[split] = recordings_of(recordings)
    segments = read_table(folder / "segments", 4, REMEDY)
    speakers = {utterance: rest[0] for utterance, rest in read_table(folder / "utt2spk", 2, REMEDY).items()}
    durations = {name: _number(rest[0]) for name, rest in read_table(folder / "reco2dur", 2, REMEDY).items()}
    read_table(folder / "spk2utt", 2, REMEDY)
    report.texts.update({f"{split}/{name}": folder / name for name in TEXTS})
    report.counts[split] = {"utterances": len(recordings), "speakers": len(set(speakers.values()))}
    speakers_of = defaultdict(set)
    for utterance, (recording, _, _) in segments.items():
        speakers_of[recording].add(speakers.get(utterance))
    segment_times = [(recording, _number(start), _number(end)) for recording, start, end in segments.values()]
    flaws = {
        "no duration in reco2dur": recordings.keys() - durations.keys(),
        "no segment": recordings.keys() - speakers_of.keys(),
        "a segment whose speaker utt2spk does not name": {name for name, who in speakers_of.items() if None in who},
        f"more than {SPEAKERS} speakers": {name for name, who in speakers_of.items() if len(who) > SPEAKERS},
        "a duration in reco2dur that is not the recording's in seconds": _other_durations(split, durations, report),
        "a segment that does not lie in the recording, in seconds": _outside(segment_times, durations),
        "a turn in rttm that does not lie in the recording, in seconds": _outside(_read_rttm(folder / "rttm"),
                                                                                  durations),
    }
    for flaw, names in flaws.items():
        report.add_problem(f"{len(names):,} mixtures in {folder} have {flaw}", sorted(names), REMEDY)
    return set(speakers.values())


def _other_durations(split: str, durations: dict[str, float], report: CorpusReport) -> set[str]:
    """Return the mixtures, from an even sample, whose duration differs from the recording's header."""
    names = {recording.path: recording.name for recording in report.recordings[split] if recording.name in durations}
    return {names[path] for path, header in report.read_headers(list(names))
            if header.rate == SAMPLE_RATE and not abs(durations[names[path]] - header.duration) <= TOLERANCE}


def _outside(times: list[tuple[str, float, float]], durations: dict[str, float]) -> set[str]:
    """Return the mixtures with times that do not start and end within their duration."""
    return {name for name, start, end in times
            if name in durations and not 0 <= start < end <= durations[name] + TOLERANCE}


def _read_rttm(path: Path) -> list[tuple[str, float, float]]:
    """Return the mixture, start and end of every turn; none if there is no file, which only scoring needs."""
    turns = []
    for number, line in enumerate(read_text(path).splitlines() if path.is_file() else [], 1):
        fields = line.split()
        if len(fields) < 8:
            raise CorpusError(f"{path}, line {number}: {line[:60]!r} is not 'SPEAKER <mixture> 1 <start> <duration> "
                              f"<NA> <NA> <speaker>'; {REMEDY}.")
        turns.append((fields[1], _number(fields[3]), _number(fields[3]) + _number(fields[4])))
    return turns


def _number(text: str) -> float:
    """Return a number, or NaN, which is never within a recording."""
    try:
        return float(text)
    except ValueError:
        return math.nan
