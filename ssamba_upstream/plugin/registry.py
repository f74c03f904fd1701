"""register(): makes SSAMBA known to s3prl."""

import importlib

from . import compat


def register() -> None:
    """Put the SSAMBA entries on ``s3prl.hub``, after repairing what keeps s3prl from running on today's libraries.

    From then on ``s3prl.nn.S3PRLUpstream("ssamba_local", path_or_url=...)`` and ``s3prl.run_downstream`` work in this
    process and in the worker processes it starts. May be called any number of times.
    """
    compat.apply()
    importlib.import_module("s3prl.hub")
