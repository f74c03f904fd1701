"""Paths of the files that the tests read."""

from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
DATA = CHECKOUT / "tests" / "data"
SHARED_AUDIO = CHECKOUT.parent / "shared" / "audio"
