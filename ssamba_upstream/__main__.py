"""``python -m ssamba_upstream``: the ``ssamba`` command, for torchrun's ``-m``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
