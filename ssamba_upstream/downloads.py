"""Names and URLs of checkpoints -> files: the published ones, the Hugging Face hub's, and those behind a URL."""

import hashlib
import os
from pathlib import Path
from urllib.parse import urlparse

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from .checkpoint import CheckpointError

MASKED_PATCHES = (250, 300, 400)
PUBLISHED_REPOSITORY = "attentionisallyouneed369/ssamba"
CHECKPOINT_FOLDER_VARIABLE = "SSAMBA_CHECKPOINTS"


def find_published(name, refresh=False):
    """The file of a published checkpoint, by the name of its s3prl entry.

    Looked for, in this order: ``<name>/``, ``<name>.safetensors``, ``<name>.ckpt`` and ``<name>.pth`` in the folder
    that the environment variable SSAMBA_CHECKPOINTS names; the local cache of the Hugging Face hub; the hub.

    Args:
        name: such as "ssamba_tiny_400"; without a number of masked patches, 400.
        refresh: download again.

    Raises:
        CheckpointError: it is nowhere, or the hub cannot be reached; says what was looked for.
    """
    if not name.endswith(tuple(f"_{masked}" for masked in MASKED_PATCHES)):
        name = f"{name}_{MASKED_PATCHES[-1]}"
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
            f"{PUBLISHED_REPOSITORY} ({type(error).__name__}). Give a checkpoint with -k (path_or_url in "
            f"S3PRLUpstream), or put it into a folder and name that in {CHECKPOINT_FOLDER_VARIABLE}"
        ) from error


def download_repository(repository, refresh=False):
    """Folder of a checkpoint in this package's format on the Hugging Face hub, such as "user/ssamba-tiny"."""
    try:
        return Path(snapshot_download(
            repository, allow_patterns=["config.json", "*.safetensors"], force_download=refresh
        ))
    except (OSError, HfHubHTTPError, ValueError) as error:
        raise CheckpointError(f"cannot get {repository} from the Hugging Face hub: {error}") from error


def download_url(url, refresh=False):
    """Local copy of a checkpoint file at a URL, kept in torch.hub's folder under the URL's hash."""
    folder = Path(torch.hub.get_dir(), "checkpoints", hashlib.sha256(url.encode()).hexdigest()[:16])
    file = folder / (Path(urlparse(url).path).name or "checkpoint.ckpt")
    if refresh or not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(file))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot download {url}: {error}") from error
    return file
