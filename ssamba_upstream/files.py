"""The only writer: files and folders that are whole at every moment, journals, locks, and hashes of files."""

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
"""The name of a folder's lock, and the end of a file's."""

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system without locks answers."""

_held = set()  # file descriptors of the locks of this process


@contextmanager
def replacing(path):
    """A path beside ``path`` to write to; it takes the place of ``path`` at the end, or is removed after an error.

    The folder is made where it is not there. Where several processes write the same file, the last one's stays. Whoever
    may read new files may read this one, which safetensors would let no one but its owner do.
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
    """A folder beside ``path`` to fill; it becomes ``path`` at the end, or is removed after an error.

    Raises:
        FileExistsError: ``path`` is there, and is not an empty folder.
    """
    path = Path(os.path.abspath(path))
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} is not an empty folder; give the name of a new one, or remove it first")
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

    The lock is a file, ``.lock`` in the folder or ``.NAME.lock`` beside the file, which is removed at the end. If a
    process is killed, its file stays, and the next process takes it over. Programs that inherit the descriptor hold the
    lock too; forked processes, such as workers that read data, do not.

    Args:
        output: the file, or a folder that exists.
        wait: If True, print a line and wait until the other process has finished. Default: False, raise an error.

    Yields:
        The file descriptor of the lock.

    Raises:
        BlockingIOError: Another process has the lock, and ``wait`` is False.
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
    """A file of JSON that gains a line with each entry; half a line, which an interruption left at its end, is removed.

    Args:
        path: the file, made if it does not exist.

    Attributes:
        entries: all that the file holds, in order.
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
        """Add an entry, anything that JSON can hold; it is in the file when this returns."""
        self.entries.append(entry)
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()


def write_text(text, path, errors="strict"):
    """Write a file of text, in UTF-8; ``errors`` is what becomes of characters that this does not have."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors=errors)


def write_json(content, path):
    """Write a file of JSON, see :func:`to_json`, indented and with a line end after it."""
    write_text(to_json(content, indent=2) + "\n", path)


def to_json(content, indent=None):
    """JSON of something made of dicts, lists, strings and numbers; NaN and infinity, which JSON does not have, are
    null."""
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def read_json(path):
    """The content of a file of JSON; None for NaN and infinity, which earlier versions wrote into some."""
    return json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=lambda name: None)


def markdown_table(columns, rows):
    """A table in Markdown, without a line end after it; columns of numbers are aligned on the right.

    Args:
        columns: their names.
        rows: lists of cells, which are written as ``str`` does.
    """
    rows = [[str(cell) for cell in row] for row in rows]
    edges = ["---:" if all(map(_is_number, cells)) else "---" for cells in zip(*rows)] or ["---"] * len(columns)
    return "\n".join(f"| {' | '.join(line)} |" for line in [columns, edges, *rows])


def shown(number, layout=".4f"):
    """A number as tables have it, in Python's format; "-" if it is None or not finite."""
    return "-" if _finite(number) is None else format(number, layout)


def file_hash(path):
    """The SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def json_hash(content):
    """The SHA-256 of something made of dicts, lists, strings and numbers, in hexadecimal; dicts may be in any order."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _is_number(cell):
    return re.fullmatch(r"[-*]*[\d.]*(e[-+]\d+)?\**", cell) is not None


def _finite(content):
    """The content with None in place of numbers that are not finite."""
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [*map(_finite, content)]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _take(path, output, wait):
    """The file descriptor of a lock's file, locked."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, output, wait)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the process that had the lock has removed the file


def _lock(descriptor, output, wait):
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            raise BlockingIOError(f"another process is writing {output}. Wait until it has finished, or give another "
                                  "name") from None
        print(f"{output}: waiting for another process that is writing it", flush=True)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warnings.warn(f"the file system of {output} has no locks. See that no other process writes it", stacklevel=5)


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
