"""The entries for s3prl's ``-u`` and ``S3PRLUpstream``, added by :func:`ssamba_upstream.register`."""

from functools import partial

from ..downloads import BUNDLED, PUBLISHED, CheckpointError, find_checkpoint, find_named
from .expert import UpstreamExpert


def _named(name, ckpt=None, model_config=None, refresh=False, **options):
    """Return the upstream of that name, or of ``ckpt``, which must have the same size if the name is published."""
    expert = UpstreamExpert(find_checkpoint(ckpt, refresh) if ckpt else find_named(name, refresh), model_config,
                            **options)
    size = name.split("_")[1]
    if name in PUBLISHED and expert.model.config.size != size:
        found = expert.model.config.size or f"hidden size {expert.model.config.hidden_size}"
        raise CheckpointError(f"{ckpt} is {found}, but -u {name} requires {size}. Use -u ssamba_local for any size.")
    return expert


def _given(wanted, ckpt=None, model_config=None, refresh=False, **options):
    """Return the upstream of a checkpoint of any size; ``wanted`` describes ``ckpt`` in the error if it is missing."""
    if ckpt is None:
        raise ValueError(f"this upstream needs a checkpoint. Give {wanted} with -k (path_or_url in S3PRLUpstream).")
    return UpstreamExpert(find_checkpoint(ckpt, refresh), model_config, **options)


ENTRIES = {
    **{name: partial(_named, name) for name in (*PUBLISHED, *BUNDLED)},
    "ssamba_local": partial(_given, "its path"),
    "ssamba_url": partial(_given, "the URL of a checkpoint file"),
    "ssamba_hub": partial(_given, "the name of a repository on the Hugging Face hub"),
}


def add_entries(hub):
    """Add the entries to ``s3prl.hub``, in every process that imports it, including spawned ones."""
    vars(hub).update(ENTRIES)
