"""The corpora of SUPERB's tasks: readers, checks, and writers for their layouts."""
