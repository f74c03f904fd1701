"""The corpora of SUPERB's tasks: readers, checks, and writers of their layouts."""
