"""Layout shared by speech enhancement and separation: a ``wav.scp`` of the same utterances for each kind of signal."""

from collections.abc import Iterable
from pathlib import Path

from ...files import new_folder, write_text
from ..report import CorpusReport, absolute, override, recordings_of
from .kaldi import read_wav_scp
from .utterances import write_wav


def check_signals(corpus: str, root, kinds: tuple[str, ...], released: dict[str, int], remedy: str) -> CorpusReport:
    """Check ``<root>/<split>/<kind>/wav.scp`` of every split and kind.

    Args:
        kinds: the kinds of signals: first the mixture, then its sources.
        released: number of utterances in the released corpus by split.
        remedy: how to get the files, as a clause without a full stop.
    """
    root = absolute(root)
    folders = {split: root / split for split in released}
    report = CorpusReport(corpus, root,
                          override({f"loaderrc.{split}_dir": folder for split, folder in folders.items()}))
    with report.checking(remedy, released, one_format=True):
        report.require_folder()
        for split, folder in folders.items():
            signals = {kind: read_wav_scp(folder / kind / "wav.scp", remedy, report) for kind in kinds}
            utterances = set.intersection(*(set(recordings) for recordings in signals.values()))
            report.counts[split] = {"utterances": len(utterances)}
            report.recordings[split] = recordings_of({f"{kind}/{name}": path for kind, recordings in signals.items()
                                                      for name, path in recordings.items()})
            for kind, recordings in signals.items():
                alone = sorted(recordings.keys() - utterances)
                report.add_problem(f"{len(alone):,} of the {len(recordings):,} utterances in {folder / kind} are not "
                                   f"in all of {', '.join(kinds)}", alone, remedy)
                spaced = [path for path in recordings.values() if len(str(path).split()) > 1]
                report.add_problem(f"{folder / kind / 'wav.scp'} has paths with spaces, which stop s3prl", spaced,
                                   f"move the recordings, and {remedy}")
            _check_lengths(folder, signals, utterances, report)
    return report


def write_lists(sets: dict[str, dict[str, dict[str, Path]]], out):
    """Write ``<out>/<split>/<kind>/wav.scp`` for recordings by split, kind and utterance, see :func:`new_folder`."""
    with new_folder(out) as folder:
        for split, signals in sets.items():
            for kind, recordings in signals.items():
                lines = (f"{name} {recording}\n" for name, recording in recordings.items())
                write_text("".join(lines), folder / split / kind / "wav.scp")


def write_signals(corpus, out, mixtures: Iterable[tuple]):
    """Write the wavs of a corpus, given by its module, in its own layout; a mixture is a tuple of "train", "dev" or
    "test", an utterance's name, and the samples of each of the module's ``KINDS``."""
    for split, name, *signals in mixtures:
        for kind, samples in zip(corpus.KINDS, signals):
            write_wav(Path(out) / corpus.folder(split, kind) / f"{name}.wav", samples)


def _check_lengths(folder, signals, utterances, report):
    """Check that mixture and sources have the same length: the loss compares their spectra frame by frame."""
    mixed, *sources = signals.values()
    names = [name for name in sorted(utterances) if all(signal[name].is_file() for signal in signals.values())]
    lengths = {path: header.samples for path, header in report.read_headers([mixed[name] for name in names])}
    for name in names:
        for source in sources:
            if mixed[name] in lengths and \
                    any(header.samples != lengths[mixed[name]] for _, header in report.read_headers([source[name]])):
                report.problems.append(f"{source[name]} is not as long as {mixed[name]}, its mixture; recreate "
                                       f"the recordings of {folder}.")
                return
