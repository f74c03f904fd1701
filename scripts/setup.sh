#!/usr/bin/env bash
# Creates the checkout's .venv with the given extra (superb or test); fast if everything is already installed.
set -euo pipefail
cd "$(dirname "$0")/.."

[ -x .venv/bin/python ] || python3 -m venv .venv
.venv/bin/python -c "import torch" 2>/dev/null || .venv/bin/python -m pip install -q torch==2.13.0 torchaudio==2.11.0
.venv/bin/python -m pip install -q -e ".[$1]"
