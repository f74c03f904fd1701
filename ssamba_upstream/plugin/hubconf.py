"""The entries that s3prl's ``-u`` and ``S3PRLUpstream`` know after :func:`ssamba_upstream.register`."""

from functools import partial

from ..checkpoint import STARTER, CheckpointError
from ..downloads import MASKED_PATCHES, download_repository, download_url, find_published
from ..network.configuration import HIDDEN_SIZES
from .expert import UpstreamExpert


def _published(name, ckpt=None, model_config=None, refresh=False, **options):
    """A checkpoint of the paper, or, with ``ckpt``, an own one of the same size."""
    expert = UpstreamExpert(ckpt or find_published(name, refresh), model_config, **options)
    size = name.split("_")[1]
    if expert.model.config.size != size:
        found = expert.model.config.size or f"hidden size {expert.model.config.hidden_size}"
        raise CheckpointError(f"{ckpt} is {found}, and -u {name} asks for {size}; use -u ssamba_local for any size")
    return expert


def ssamba_starter(ckpt=None, model_config=None, refresh=False, **options):
    """The small checkpoint that comes with the package, or, with ``ckpt``, another of any size."""
    return UpstreamExpert(ckpt or STARTER, model_config, **options)


def ssamba_local(ckpt=None, model_config=None, refresh=False, **options):
    """A checkpoint of any size; ``ckpt`` is its path."""
    return UpstreamExpert(ckpt, model_config, **options)


def ssamba_url(ckpt=None, model_config=None, refresh=False, **options):
    """A checkpoint file of any size; ``ckpt`` is its URL."""
    if ckpt is None:
        raise ValueError("ssamba_url needs the URL of a checkpoint file: give it with -k (path_or_url in "
                         "S3PRLUpstream)")
    return UpstreamExpert(download_url(ckpt, refresh), model_config, **options)


def ssamba_hub(ckpt=None, model_config=None, refresh=False, **options):
    """A checkpoint folder of any size on the Hugging Face hub; ``ckpt`` is its name, such as "user/ssamba-tiny"."""
    if ckpt is None:
        raise ValueError("ssamba_hub needs the name of a repository on the Hugging Face hub: give it with -k "
                         "(path_or_url in S3PRLUpstream)")
    return UpstreamExpert(download_repository(ckpt, refresh), model_config, **options)


ENTRIES = {
    **{f"ssamba_{size}": partial(_published, f"ssamba_{size}") for size in HIDDEN_SIZES},
    **{
        f"ssamba_{size}_{masked}": partial(_published, f"ssamba_{size}_{masked}")
        for size in HIDDEN_SIZES for masked in MASKED_PATCHES
    },
    "ssamba_starter": ssamba_starter,
    "ssamba_local": ssamba_local,
    "ssamba_url": ssamba_url,
    "ssamba_hub": ssamba_hub,
}
