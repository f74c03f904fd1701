"""register() adds SSAMBA to s3prl."""

import importlib

from . import compat


def register() -> None:
    """Add SSAMBA's entries to ``s3prl.hub``, after making s3prl run on current versions of its libraries.

    Afterwards ``s3prl.nn.S3PRLUpstream("ssamba_local", path_or_url=...)`` and ``s3prl.run_downstream`` work in this
    process and in the worker processes it starts. It can be called any number of times.
    """
    compat.apply()
    importlib.import_module("s3prl.hub")
