"""Kaldi's folders of text files, a recording or an utterance a line, as s3prl reads mixtures."""

import os
from pathlib import Path

from ..files import write_text
from .report import CorpusError, CorpusReport, first, read_text


def read_table(path: Path, fields: int, remedy: str) -> dict[str, list[str]]:
    """The lines of a file by their first field; the last of the fields may hold spaces.

    Args:
        path: the file.
        fields: number of them in a line.
        remedy: what to do about a file that is not there, without the end of the sentence.

    Raises:
        CorpusError: the file cannot be read, or a line has another number of fields.
    """
    try:
        lines = read_text(path).splitlines()
    except CorpusError as error:
        raise CorpusError(f"{error} To have it, {remedy}.") from error
    table = {}
    for number, line in enumerate(lines, 1):
        name, *rest = line.split(maxsplit=fields - 1) or [""]
        if len(rest) != fields - 1:
            raise CorpusError(f"{path}, line {number}: {line[:60]!r} has not {fields} fields; {remedy}.")
        table[name] = rest
    return table


def read_wav_scp(path: Path, remedy: str, report: CorpusReport) -> dict[str, Path]:
    """Recordings by utterance, of ``wav.scp``; those that are not there become a problem of the report."""
    recordings = {name: Path(rest[0]) for name, rest in read_table(path, 2, remedy).items()}
    missing = [str(recording) for recording in recordings.values() if not os.path.isfile(recording)]
    if missing:
        report.problems.append(f"{len(missing):,} of the {len(recordings):,} recordings of {path} are not there: "
                               f"{first(missing)}; write {path.name} anew where they are.")
    return recordings


def write_wav_scp(recordings: dict[str, Path], path: Path):
    """Write recordings by utterance."""
    write_text("".join(f"{name} {recording}\n" for name, recording in recordings.items()), path)
