#!/usr/bin/env bash
# Checks the style and runs the tests in the checkout's own .venv; arguments go to pytest, such as -m "not slow".
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh test
.venv/bin/python -m ruff check .
.venv/bin/python -m pytest "$@"
