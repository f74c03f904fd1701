"""The only writer: files and folders that are whole at every moment, locks, and hashes of what is in them."""

import fcntl
import hashlib
import json
import math
import os
import shutil
import uuid
from contextlib import contextmanager
from pathlib import Path


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
def locked(path, notice):
    """Hold a lock file, which is made where it is not there; if another process holds it, print the notice and wait.

    Yields its file descriptor, so that child processes that inherit it hold the lock as well.
    """
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(notice, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


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


def _finite(content):
    """The content with None in place of numbers that are not finite."""
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [*map(_finite, content)]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _permissions_of_new(path):
    path.touch()
    permissions = path.stat().st_mode
    path.unlink()
    return permissions


def _beside(path):
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
