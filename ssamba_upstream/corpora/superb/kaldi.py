"""Kaldi's folders of text files, a recording or an utterance a line, as s3prl reads mixtures."""

from pathlib import Path

from ...files import write_text
from ..report import CorpusError, CorpusReport, read_text, require_files


def read_table(path: Path, fields: int, remedy: str) -> dict[str, list[str]]:
    """The lines of a file by their first field; the last of the fields may hold spaces.

    Args:
        path: the file.
        fields: number of them in a line.
        remedy: what to do about a file that is not there, without the end of the sentence.

    Raises:
        CorpusError: the file cannot be read, or a line has another number of fields.
    """
    table = {}
    for number, line in enumerate(read_text(path, f"To have it, {remedy}.").splitlines(), 1):
        name, *rest = line.split(maxsplit=fields - 1) or [""]
        if len(rest) != fields - 1:
            raise CorpusError(f"{path}, line {number}: {line[:60]!r} has not {fields} fields; {remedy}.")
        table[name] = rest
    return table


def read_wav_scp(path: Path, remedy: str, report: CorpusReport) -> dict[str, Path]:
    """Recordings by utterance, of ``wav.scp``; those that are not there become a problem of the report."""
    recordings = {name: Path(rest[0]) for name, rest in read_table(path, 2, remedy).items()}
    require_files(list(recordings.values()), path, f"write {path.name} anew where they are", report)
    return recordings


def write_wav_scp(recordings: dict[str, Path], path: Path):
    """Write recordings by utterance."""
    write_text("".join(f"{name} {recording}\n" for name, recording in recordings.items()), path)
