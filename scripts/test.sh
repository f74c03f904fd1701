#!/usr/bin/env bash
# Checks the style and runs the tests in the checkout's .venv, in two processes. Arguments are passed to pytest, such as
# -m "not slow", or -n 0 for a single process.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh test
.venv/bin/python -m ruff check .
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} .venv/bin/python -m pytest -n 2 --dist loadfile "$@"
