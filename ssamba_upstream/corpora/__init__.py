"""Recordings and their labels: manifests, labelled sets, and one file per corpus. Does not use s3prl."""
