"""The entries that s3prl's ``-u`` and ``S3PRLUpstream`` know after :func:`ssamba_upstream.register`."""

from functools import partial

from ..downloads import BUNDLED, PUBLISHED, CheckpointError, find_checkpoint, find_named
from .expert import UpstreamExpert


def _named(name, ckpt=None, model_config=None, refresh=False, **options):
    """The checkpoint of that name; or, with ``ckpt``, another one, which for a published name has to be of its size."""
    expert = UpstreamExpert(find_checkpoint(ckpt, refresh) if ckpt else find_named(name, refresh), model_config,
                            **options)
    size = name.split("_")[1]
    if name in PUBLISHED and expert.model.config.size != size:
        found = expert.model.config.size or f"hidden size {expert.model.config.hidden_size}"
        raise CheckpointError(f"{ckpt} is {found}, and -u {name} asks for {size}; use -u ssamba_local for any size")
    return expert


def _given(wanted, ckpt=None, model_config=None, refresh=False, **options):
    """A checkpoint of any size; ``ckpt`` is its path or name, and ``wanted`` says so where it is missing."""
    if ckpt is None:
        raise ValueError(f"this upstream needs a checkpoint: give {wanted} with -k (path_or_url in S3PRLUpstream)")
    return UpstreamExpert(find_checkpoint(ckpt, refresh), model_config, **options)


ENTRIES = {
    **{name: partial(_named, name) for name in (*PUBLISHED, *BUNDLED)},
    "ssamba_local": partial(_given, "its path"),
    "ssamba_url": partial(_given, "the URL of a checkpoint file"),
    "ssamba_hub": partial(_given, "the name of a repository on the Hugging Face hub"),
}
