"""Replacements that ``plugin.compat`` installs in s3prl, one file per subject."""

import functools


def wrap(owner, name):
    """Return a decorator that replaces a function of a module, class or object by one that gets the original as its
    first argument."""
    original = getattr(owner, name)

    def install(function):
        @functools.wraps(original)
        def wrapped(*args, **kwargs):
            return function(original, *args, **kwargs)

        setattr(owner, name, wrapped)
        return wrapped

    return install
