"""Writing of files and folders that are complete at all times, journals, locks, and hashes of files."""

import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import uuid
import warnings
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"
"""Name of a folder's lock, and suffix of a file's lock."""

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of file systems without locks."""

_held = set()  # file descriptors of this process's locks


@contextmanager
def replacing(path):
    """Yield a temporary path next to ``path``; it replaces ``path`` at the end, or is removed after an error.

    A missing folder is created. If several processes write the same file, the last one wins. The file gets the usual
    permissions of new files; safetensors would let only its owner read it.
    """
    path = Path(path)
    temporary = _beside(path)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    permissions = _permissions_of_new(temporary)
    try:
        yield temporary
        temporary.chmod(permissions)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path):
    """Yield a temporary folder next to ``path``; it becomes ``path`` at the end, or is removed after an error.

    Raises:
        FileExistsError: If ``path`` exists and is not an empty folder.
    """
    path = Path(os.path.abspath(path))
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} is not an empty folder. Choose a new folder, or remove it first")
    temporary = _beside(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def locked(output, wait=False):
    """Keep other processes from writing a file or folder until the end of the context.

    The lock is a file, ``.lock`` in the folder or ``.NAME.lock`` next to the file, which is removed at the end. If a
    process is killed, its lock file remains, and the next process takes it over. Programs that inherit the descriptor
    also hold the lock; forked processes, such as data-loading workers, do not.

    Args:
        output: the file, or an existing folder.
        wait: If True, print a line and wait until the other process has finished. Default: False, raise an error.

    Yields:
        the file descriptor of the lock.

    Raises:
        BlockingIOError: If another process holds the lock and ``wait`` is False.
    """
    output = Path(output)
    path = output / LOCK if output.is_dir() else output.with_name(f".{output.name}{LOCK}")
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _take(path, output, wait)
    _held.add(descriptor)
    try:
        yield descriptor
    finally:
        path.unlink(missing_ok=True)
        _held.discard(descriptor)
        os.close(descriptor)


class Journal:
    """A file with one line of JSON per entry. An incomplete last line, left by an interruption, is removed.

    Args:
        path: path of the file, created if missing.

    Attributes:
        entries: all entries of the file, in order.
    """

    def __init__(self, path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a+b")
        self._file.seek(0)
        lines = self._file.read().split(b"\n")
        self._file.seek(-len(lines.pop()), os.SEEK_END)
        self._file.truncate()
        self.entries = [json.loads(line) for line in lines]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()

    def append(self, entry):
        """Append an entry, any JSON-compatible value; it is in the file when this returns."""
        self.entries.append(entry)
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()


def write_text(text, path, errors="strict"):
    """Write a text file in UTF-8; ``errors`` is Python's error handler for characters that cannot be encoded."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors=errors)


def write_json(content, path):
    """Write an indented JSON file that ends with a newline, see :func:`to_json`."""
    write_text(to_json(content, indent=2) + "\n", path)


def to_json(content, indent=None):
    """Return the JSON of dicts, lists, strings and numbers; NaN and infinity, which JSON lacks, become null."""
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def read_json(path):
    """Return the content of a JSON file; NaN and infinity, written by earlier versions, become None."""
    return json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=lambda name: None)


def markdown_table(columns, rows):
    """Return a Markdown table of column names and rows of cells, which ``str`` converts, without a final newline;
    numeric columns are right-aligned."""
    rows = [[str(cell) for cell in row] for row in rows]
    edges = ["---:" if all(map(_is_number, cells)) else "---" for cells in zip(*rows)] or ["---"] * len(columns)
    return "\n".join(f"| {' | '.join(line)} |" for line in [columns, edges, *rows])


def shown(number, layout=".4f"):
    """Format a number for a table, with Python's format ``layout``; "-" if it is None or not finite."""
    return "-" if _finite(number) is None else format(number, layout)


def file_hash(path):
    """Return the SHA-256 of a file's content in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def json_hash(content):
    """Return the SHA-256 of dicts, lists, strings and numbers in hexadecimal, independent of the order of dicts."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _is_number(cell):
    return re.fullmatch(r"[-*]*[\d.]*(e[-+]\d+)?\**", cell) is not None


def _finite(content):
    """Return the content with None in place of numbers that are not finite."""
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [*map(_finite, content)]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _take(path, output, wait):
    """Lock a lock's file, and return its file descriptor."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, output, wait)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the process that held the lock has removed the file


def _lock(descriptor, output, wait):
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            raise BlockingIOError(f"another process is writing {output}. Wait until it has finished, or choose another "
                                  "name") from None
        print(f"{output}: waiting for another process that is writing it", flush=True)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warnings.warn(f"the file system of {output} has no locks. Make sure that no other process writes to it",
                      stacklevel=5)


def _let_go_of_locks():
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_of_locks)


def _permissions_of_new(path):
    path.touch()
    permissions = path.stat().st_mode
    path.unlink()
    return permissions


def _beside(path):
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
