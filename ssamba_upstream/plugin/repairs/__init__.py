"""Replacements that ``plugin.compat`` installs in s3prl, one file per subject."""
