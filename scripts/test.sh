#!/usr/bin/env bash
# Runs the tests in the checkout's own .venv; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh test
.venv/bin/python -m pytest "$@"
