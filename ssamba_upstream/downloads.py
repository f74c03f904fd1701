"""Find checkpoints by name: bundled and published ones, repositories on the Hugging Face hub, and URLs."""

import hashlib
import os
import re
from pathlib import Path
from urllib.parse import urlparse

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from .network.configuration import HIDDEN_SIZES

BUNDLED = {f"ssamba_{name}": Path(__file__).parent / "checkpoints" / name
           for name in ("starter", "distilled", "stream")}
"""Checkpoints included in the package."""

MASKED_PATCHES = (250, 300, 400)
PUBLISHED = {
    **{f"ssamba_{size}": f"ssamba_{size}_{MASKED_PATCHES[-1]}" for size in HIDDEN_SIZES},
    **{name: name for size in HIDDEN_SIZES for masked in MASKED_PATCHES for name in [f"ssamba_{size}_{masked}"]},
}
"""Names of the published checkpoints -> names of their files without the suffix."""

PUBLISHED_REPOSITORY = "attentionisallyouneed369/ssamba"
CHECKPOINT_FOLDER_VARIABLE = "SSAMBA_CHECKPOINTS"

SUFFIXES = (".safetensors", ".ckpt", ".pth", ".pt")
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of the wrong kind or size."""


def find_checkpoint(checkpoint: str | os.PathLike, refresh: bool = False) -> Path:
    """Find a checkpoint by its path or name.

    Every command, function and s3prl entry that takes a checkpoint calls this function.

    Args:
        checkpoint: a path, or a name as in :func:`find_named`. If the path exists, it takes precedence over the name.
        refresh: if True, download again.

    Returns:
        The Path of a file or folder.

    Raises:
        CheckpointError: If there is no such path and no checkpoint of that name.
    """
    return Path(checkpoint) if os.path.exists(checkpoint) else find_named(str(checkpoint), refresh)


def find_named(name: str, refresh: bool = False) -> Path:
    """Find a checkpoint by its name, whether or not a path has that name.

    Args:
        name: "ssamba_starter", "ssamba_distilled" or "ssamba_stream", which are included in the package; a published
            checkpoint such as "ssamba_tiny" or "ssamba_tiny_400", see :func:`find_published`; "user/repository" on the
            Hugging Face hub; or a URL.
        refresh: see :func:`find_checkpoint`.

    Raises:
        CheckpointError: If there is no checkpoint of that name, or it cannot be downloaded.
    """
    if name in BUNDLED:
        return BUNDLED[name]
    if name in PUBLISHED:
        return find_published(name, refresh)
    if "://" in name:
        return download_url(name, refresh)
    if REPOSITORY.fullmatch(name) and not name.endswith(SUFFIXES) and not Path(name).parent.exists():
        return download_repository(name, refresh)
    raise CheckpointError(f"no checkpoint {name}: there is no such file or folder. Give a path, {', '.join(BUNDLED)}, "
                          "the name of a published checkpoint such as ssamba_tiny, user/repository on the Hugging Face "
                          "hub, or a URL")


def find_published(name, refresh=False):
    """Find a published checkpoint by a name in ``PUBLISHED``; without a number of masked patches, 400 is meant.

    Search order: ``<name>/``, ``<name>.safetensors``, ``<name>.ckpt`` and ``<name>.pth`` in the folder given by the
    environment variable SSAMBA_CHECKPOINTS; the local cache of the Hugging Face hub, unless ``refresh``; the hub. If
    none has it, a CheckpointError lists the places searched.
    """
    name = PUBLISHED[name]
    folder = os.environ.get(CHECKPOINT_FOLDER_VARIABLE)
    if folder:
        for candidate in (Path(folder, name + suffix) for suffix in ("", ".safetensors", ".ckpt", ".pth")):
            if candidate.exists():
                return candidate
    file = f"{name}.pth"
    if not refresh:
        try:
            return Path(hf_hub_download(PUBLISHED_REPOSITORY, file, local_files_only=True))
        except LocalEntryNotFoundError:
            pass
    try:
        return Path(hf_hub_download(PUBLISHED_REPOSITORY, file, force_download=refresh))
    except (OSError, HfHubHTTPError) as error:
        raise CheckpointError(
            f"no checkpoint {name}: looked in the folder named by {CHECKPOINT_FOLDER_VARIABLE} "
            f"({folder or 'not set'}), in the local Hugging Face cache, and for {file} in the hub's "
            f"{PUBLISHED_REPOSITORY} ({type(error).__name__}). Give the path of a checkpoint (in s3prl with -k or "
            f"path_or_url), or put it into a folder and set {CHECKPOINT_FOLDER_VARIABLE} to that folder"
        ) from error


def download_repository(repository, refresh=False):
    """Download a checkpoint folder in this package's format from the Hugging Face hub, such as "user/ssamba-tiny"."""
    try:
        return Path(snapshot_download(repository, allow_patterns=["*.json", "*.safetensors"], force_download=refresh))
    except (OSError, HfHubHTTPError, ValueError) as error:
        raise CheckpointError(f"no checkpoint {repository}: there is no such file or folder, and the Hugging Face hub "
                              f"does not provide a repository of that name ({type(error).__name__}). Correct the path "
                              "or name, or check the connection") from error


def download_url(url, refresh=False):
    """Download a checkpoint file from a URL into torch.hub's folder, under the URL's hash."""
    folder = Path(torch.hub.get_dir(), "checkpoints", hashlib.sha256(url.encode()).hexdigest()[:16])
    file = folder / (Path(urlparse(url).path).name or "checkpoint.ckpt")
    if refresh or not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(file))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot download {url}: {error}") from error
    return file
