"""Manifests: lists of audio files."""

import json
import os
import signal
from array import array
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from ..audio import AUDIO_EXTENSIONS, AudioError, read_header
from ..files import write_text
from ..reading import read_or_error

HOW_TO_WRITE = "`ssamba manifest FOLDER... --out OUT.jsonl` writes a manifest"


class Paths(Sequence):
    """Paths in two arrays, which forked processes can read without copying. A list of millions of strings would be
    copied page by page, because every access changes a string's reference count.

    Args:
        paths: paths as str; names that are not valid Unicode are preserved.
    """

    def __init__(self, paths=()):
        self._content, self._ends = bytearray(), array("q", [0])
        for path in paths:
            self._content += path.encode(errors="surrogatepass")
            self._ends.append(len(self._content))

    def __len__(self):
        return len(self._ends) - 1

    def __getitem__(self, index):
        places = range(len(self))[index]
        if isinstance(index, slice):
            return Paths(self[place] for place in places)
        return self._content[self._ends[places]:self._ends[places + 1]].decode(errors="surrogatepass")

    def __eq__(self, other):
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None


class ManifestError(ValueError):
    """Raised if a manifest or its audio cannot be used; the message says what to do."""


@dataclass
class ManifestSummary:
    """The number of files in a manifest, their hours, and a line for each unreadable file, which is not in it."""

    files: int
    hours: float
    unreadable: list[str]


def write_manifest(folders, out, processes=None):
    """Read the headers of all audio files in some folders once, and write a manifest.

    Audio files are those with an extension in :data:`ssamba_upstream.audio.AUDIO_EXTENSIONS`. Links to files are
    followed, links to folders are not.

    Args:
        folders: folders to search, including subfolders.
        out: the manifest, a ``.jsonl`` file: a line ``{"path": absolute, "duration": seconds, "rate":
            Hz, "channels": n}`` per readable file, sorted by path. Unreadable files are skipped and listed with
            the reason in ``<out>.unreadable.txt``.
        processes: number of reading processes. Default: the number of processors.

    Returns:
        A :class:`ManifestSummary`.

    Raises:
        ManifestError: If a folder does not exist, or there is no readable audio. Nothing is written then.
    """
    out = Path(out)
    if out.suffix != ".jsonl":
        raise ManifestError(f"{out}: a manifest's name must end in .jsonl")
    files, unreadable = find_audio(folders)
    lines, seconds = [], 0.0
    for file, header in read_in_processes(read_header, files, unreadable, "reading headers", processes):
        lines.append(json.dumps({"path": file, "duration": header.duration, "rate": header.rate,
                                 "channels": header.channels}))
        seconds += header.duration
    _write_lines(out, lines)
    report = out.with_name(f"{out.name}.unreadable.txt")
    report.unlink(missing_ok=True)
    if unreadable:
        _write_lines(report, unreadable)
    return ManifestSummary(len(lines), seconds / 3600, unreadable)


def find_audio(folders):
    """Return the audio files in some folders, sorted, and a line for each folder that cannot be searched.

    Raises:
        ManifestError: If a folder does not exist, or no folder contains audio.
    """
    files, unreadable = set(), []
    for folder in folders:
        if not os.path.isdir(folder):
            raise ManifestError(f"{folder}: not a folder. Give the folders that contain your audio")
        walk = os.walk(os.path.abspath(folder),
                       onerror=lambda error: unreadable.append(f"{error.filename}: {error.strerror}"))
        files.update(os.path.join(parent, name) for parent, _, names in walk for name in names
                     if name.lower().endswith(AUDIO_EXTENSIONS))
    if not files:
        raise ManifestError(f"no {', '.join(AUDIO_EXTENSIONS)} file in {', '.join(map(str, folders))}. Give the "
                            f"folders that contain your audio{''.join(f' ({line})' for line in unreadable)}")
    return sorted(files), unreadable


def read_in_processes(read, files, unreadable, title, processes=None):
    """Yield each readable file and what ``read``, which may raise an AudioError, returns for it in another process.

    A line for each unreadable file is added to ``unreadable``. If no file can be read, a ManifestError is raised. The
    default number of processes is that of processors.
    """
    found = 0
    # Without the initializer, Ctrl-C prints a traceback for each process.
    pool = ProcessPoolExecutor(processes, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
    try:
        results = pool.map(partial(read_or_error, read), files, chunksize=16)
        for file, result in zip(files, tqdm(results, title, len(files), unit=" files")):
            if isinstance(result, AudioError):
                unreadable.append(f"{file}: {result.reason}")
            else:
                found += 1
                yield file, result
    finally:
        pool.shutdown(cancel_futures=True)
    if not found:
        raise ManifestError(f"none of {len(files)} audio files can be read; the first: {unreadable[0]}")


def _write_lines(path, lines):
    write_text("".join(f"{line}\n" for line in lines), path, errors="surrogateescape")  # file names are bytes


def read_manifest(path):
    """Return the audio files listed in a manifest, as :class:`Paths`.

    The formats are that of :func:`write_manifest` (``.jsonl``), the published code's ``{"data": [{"wav": path}, ...]}``
    (``.json``), and fairseq's (``.tsv``: a root folder, then lines with a path in it, a tab and the samples).

    Raises:
        ManifestError: If the file does not exist, is not a manifest (the message names the line), or lists no files.
    """
    path = Path(path)
    if path.suffix not in PARSERS:
        raise ManifestError(f"{path}: a manifest's name ends in {', '.join(PARSERS)}; {HOW_TO_WRITE}")
    if not path.exists():
        raise ManifestError(f"there is no manifest {path}. Correct the path, or write it first: {HOW_TO_WRITE}")
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        files = Paths(PARSERS[path.suffix](path, file))
    if not files:
        raise ManifestError(f"{path}: lists no audio files; {HOW_TO_WRITE}")
    return files


def _parse_lines(path, lines):
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _value_of(_parse_json(path, line, number), "path", f"{path}, line {number}")


def _parse_published(path, file):
    content = _parse_json(path, file.read(), object_hook=_path_alone)
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        raise ManifestError(f'{path}: expected {{"data": [{{"wav": path}}, ...]}}, as written by the published code')
    for number, entry in enumerate(content["data"], 1):
        yield entry[0] if isinstance(entry, tuple) else _value_of(entry, "wav", f"{path}, entry {number} of data")


def _path_alone(entry):
    """Return only the path of a well-formed entry, because millions of entries take gigabytes. It is in a tuple, which
    JSON does not produce."""
    wav = entry.get("wav")
    return (wav,) if wav and isinstance(wav, str) else entry


def _parse_fairseq(path, lines):
    root = next(lines, "").removesuffix("\n")
    for number, line in enumerate((line.removesuffix("\n") for line in lines), 2):
        name, _, samples = line.partition("\t")
        if name and samples.isdecimal():
            yield os.path.join(root, name)
        elif line:
            raise ManifestError(f"{path}, line {number}: expected a path in {root!r}, a tab and a number of "
                                f"samples, but found {line[:80]!r}")


PARSERS = {".jsonl": _parse_lines, ".json": _parse_published, ".tsv": _parse_fairseq}
"""Parsers by file extension."""


def _parse_json(path, text, line=None, object_hook=None):
    try:
        return json.loads(text, object_hook=object_hook)
    except json.JSONDecodeError as error:
        raise ManifestError(f"{path}, line {line or error.lineno}: not JSON ({error.msg})") from None


def _value_of(entry, key, where):
    if not isinstance(entry, dict) or not isinstance(entry.get(key), str) or not entry[key]:
        raise ManifestError(f'{where}: expected an object whose "{key}" is the path of an audio file, '
                            f"but found {str(entry)[:80]}")
    return entry[key]
