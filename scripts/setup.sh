#!/usr/bin/env bash
# Makes the checkout's own .venv with the extra given (superb or test); quick when everything is already there.
set -euo pipefail
cd "$(dirname "$0")/.."

[ -x .venv/bin/python ] || python3 -m venv .venv
.venv/bin/python -c "import torch" 2>/dev/null || .venv/bin/python -m pip install -q torch==2.13.0 torchaudio==2.11.0
.venv/bin/python -m pip install -q -e ".[$1]"
