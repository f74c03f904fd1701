"""Synthetic speech-like sounds, and small corpora of them in the layouts of SUPERB's tasks."""
