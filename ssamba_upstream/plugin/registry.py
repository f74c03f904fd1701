"""register(): makes SSAMBA known to s3prl."""

from . import compat


def register():
    """Put the SSAMBA entries on ``s3prl.hub``, after repairing what keeps s3prl from running on today's libraries.

    From then on ``s3prl.nn.S3PRLUpstream("ssamba_local", path_or_url=...)`` and ``s3prl.run_downstream`` work in this
    process. May be called any number of times.
    """
    compat.apply()
    from s3prl import hub

    from .hubconf import ENTRIES

    for name, entry in ENTRIES.items():
        setattr(hub, name, entry)
