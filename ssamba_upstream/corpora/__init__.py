"""Recordings and their labels: manifests, labelled sets, and a file for each corpus. No s3prl."""
