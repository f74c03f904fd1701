"""SSAMBA (Self-Supervised Audio Mamba, arXiv 2405.11831) as an s3prl upstream for SUPERB.

Importing this package registers its models with transformers' Auto classes, so ``AutoModel.from_pretrained`` and
pipelines load its checkpoints. Only :func:`register` imports s3prl. The ``ssamba`` command imports models only if it
needs them, so that printing help or checking a corpus is fast.
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
"""Public names -> their modules, which are imported when a name is first accessed."""

__all__ = [*_MODULES, "__version__", "register"]


def register() -> None:
    """Add the SSAMBA entries to ``s3prl.hub``, see :func:`ssamba_upstream.plugin.compat.register`."""
    from .plugin import compat

    compat.register()


def __getattr__(name):
    if name == "__version__":
        return importlib.metadata.version("ssamba-upstream")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import auto_classes  # noqa: F401  (also makes torchaudio importable)

    return getattr(importlib.import_module(_MODULES[name], __name__), name)


def _is_command():
    """Return True if this process is the ``ssamba`` script or ``python -m ssamba_upstream``."""
    arguments = sys.orig_argv[1:]  # worker processes inherit sys.argv
    return arguments[:2] == ["-m", __name__] or bool(arguments) and Path(arguments[0]).name == "ssamba"


if not _is_command():
    from . import auto_classes  # noqa: F401
