"""SSAMBA (Self-Supervised Audio Mamba, arXiv 2405.11831) as an s3prl upstream for SUPERB.

Importing this package makes its models known to transformers' Auto classes, so that ``AutoModel.from_pretrained`` and
pipelines take its checkpoints; s3prl is imported by :func:`register` only. The ``ssamba`` command imports the package
too, if only to check a corpus or to print a page of help; there the models are imported when something asks for them.
"""

import importlib
import sys
from pathlib import Path

__all__ = [
    "SsambaConfig",
    "SsambaFeatureExtractor",
    "SsambaForAudioClassification",
    "SsambaForAudioFrameClassification",
    "SsambaForPreTraining",
    "SsambaModel",
    "register",
]


def register():
    """Put the SSAMBA entries on ``s3prl.hub``, see :func:`ssamba_upstream.plugin.registry.register`."""
    from .plugin import registry

    registry.register()


def __getattr__(name):
    if name in __all__:
        return getattr(importlib.import_module(".auto_classes", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _is_command():
    """Whether this process is the ``ssamba`` command: the script of that name, or ``python -m ssamba_upstream``."""
    arguments = sys.orig_argv[1:]  # those of sys.argv are handed on to worker processes
    return arguments[:2] == ["-m", __name__] or bool(arguments) and Path(arguments[0]).name == "ssamba"


if not _is_command():
    from .auto_classes import (
        SsambaConfig,
        SsambaFeatureExtractor,
        SsambaForAudioClassification,
        SsambaForAudioFrameClassification,
        SsambaForPreTraining,
        SsambaModel,
    )
