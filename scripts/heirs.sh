#!/usr/bin/env bash
# heirs.sh WORK [ARGUMENTS]: runs the plugin's tests with s3prl's maintained fork and with both supported versions of
# s3prl, each in its own environment in WORK. ARGUMENTS, such as -m "not slow", are passed to pytest. Releases run it.
# An environment has its own s3prl and takes everything else from the checkout's .venv, which scripts/setup.sh creates.
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: scripts/heirs.sh WORK [ARGUMENTS]" >&2; exit 2; }
mkdir -p "$1"
work=$(realpath "$1")
shift
cd "$(dirname "$0")/.."

site='import sysconfig; print(sysconfig.get_path("purelib"))'
failed=()
for s3prl in espnet-s3prl s3prl==0.4.17 s3prl==0.4.18; do
    echo "== $s3prl"
    python="$work/$s3prl/bin/python"
    if ! "$python" -m pip show -q "${s3prl%%=*}" 2> /dev/null; then
        .venv/bin/python -m venv "$work/$s3prl"
        "$python" -m pip install -q --no-deps "$s3prl"
        echo "import site; site.addsitedir('$(.venv/bin/python -c "$site")')" > "$("$python" -c "$site")/checkout.pth"
    fi
    "$python" -c "import s3prl, sys; sys.exit(not s3prl.__file__.startswith(sys.prefix))"
    OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} "$python" -m pytest -n 0 -p no:cacheprovider tests/plugin "$@" ||
        failed+=("$s3prl")
done
[ ${#failed[@]} = 0 ] || { echo "tests fail with: ${failed[*]}"; exit 1; }
