"""SSAMBA (Self-Supervised Audio Mamba, arXiv 2405.11831) as an s3prl upstream for SUPERB.

Importing this package makes its models known to transformers' Auto classes, so that ``AutoModel.from_pretrained`` and
pipelines take its checkpoints; s3prl is imported by :func:`register` only. The ``ssamba`` command imports the package
too, if only to check a corpus or to print a page of help; there the models are imported when something asks for them.
"""

import importlib.metadata
import sys
from pathlib import Path

_MODULES = {
    "FrameEncoder": ".frames",
    "UpstreamOptions": ".frames",
    "load_model": ".checkpoint",
    **dict.fromkeys([
        "SsambaConfig",
        "SsambaFeatureExtractor",
        "SsambaForAudioClassification",
        "SsambaForAudioFrameClassification",
        "SsambaForPreTraining",
        "SsambaModel",
    ], ".auto_classes"),
}
"""Names of this package -> their modules, which are imported when a name is first asked for."""

__all__ = [*_MODULES, "__version__", "register"]


def register() -> None:
    """Put the SSAMBA entries on ``s3prl.hub``, see :func:`ssamba_upstream.plugin.registry.register`."""
    from .plugin import registry

    registry.register()


def __getattr__(name):
    if name == "__version__":
        return importlib.metadata.version("ssamba-upstream")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import auto_classes  # noqa: F401  (which makes torchaudio importable, too)

    return getattr(importlib.import_module(_MODULES[name], __name__), name)


def _is_command():
    """Whether this process is the ``ssamba`` command: the script of that name, or ``python -m ssamba_upstream``."""
    arguments = sys.orig_argv[1:]  # those of sys.argv are handed on to worker processes
    return arguments[:2] == ["-m", __name__] or bool(arguments) and Path(arguments[0]).name == "ssamba"


if not _is_command():
    from . import auto_classes  # noqa: F401
