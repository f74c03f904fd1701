"""Kaldi's text files with a recording or utterance per line, which s3prl reads for mixtures."""

from pathlib import Path

from ..report import CorpusError, CorpusReport, read_text


def read_table(path: Path, fields: int, remedy: str) -> dict[str, list[str]]:
    """Return the lines of a file by their first field; the last field can contain spaces.

    Raises:
        CorpusError: If the file cannot be read, or a line has another number of fields. It ends with the remedy.
    """
    table = {}
    for number, line in enumerate(read_text(path, f"To get it, {remedy}.").splitlines(), 1):
        name, *rest = line.split(maxsplit=fields - 1) or [""]
        if len(rest) != fields - 1:
            raise CorpusError(f"{path}, line {number}: {line[:60]!r} does not have {fields} fields; {remedy}.")
        table[name] = rest
    return table


def read_wav_scp(path: Path, remedy: str, report: CorpusReport) -> dict[str, Path]:
    """Return the recordings in ``wav.scp`` by utterance; report missing ones."""
    recordings = {name: Path(rest[0]) for name, rest in read_table(path, 2, remedy).items()}
    report.check_exist(list(recordings.values()), path, f"rewrite {path.name} with their current paths")
    return recordings
