#!/usr/bin/env bash
# Checks on a machine with a GPU, python3, torch, triton and transformers, but no network:
#   scripts/gpu_check.sh collect WHEELS [PYTHON_VERSION [PACKAGE...]]
#       with a network: downloads all other packages, by default for 3.12; the checks install only missing ones
#   scripts/gpu_check.sh right|kernels|programs|all OUT [WHEELS]
# Each part ends within 9 minutes, and each of its steps within its own time limit; "all" runs the three parts in turn.
# OUT/summary.md lists which steps passed, failed or were left out, and why, and contains the tables. OUT also contains
# each step's output, JSON and plots. TOY=1 tests this script: every step runs on a CPU at toy size, the kernels in
# Triton's interpreter.
set -uo pipefail
cd "$(dirname "$0")/.."
part=${1:?right, kernels, programs, all or collect}
out=$(realpath -m "${2:?a folder for the results}")

PACKAGES=(s3prl==0.4.18 torchaudio "omegaconf>=2.4" soundfile cffi pycparser webdataset braceexpand tensorboardX
    librosa==0.11.0 audioread pooch soxr decorator msgpack platformdirs joblib lazy_loader pyyaml protobuf
    requests urllib3 idna certifi charset-normalizer tqdm setuptools
    pytest pytest-xdist execnet iniconfig pluggy pygments packaging
    scikit-learn scipy threadpoolctl numba llvmlite
    matplotlib contourpy cycler fonttools kiwisolver pyparsing pillow python-dateutil six)

if [ "$part" = collect ]; then
    version=${3:-3.12}
    (($# > 3)) && PACKAGES=("${@:4}")
    status=0
    python3 -m pip wheel -q --no-deps -w "$out" s3prl==0.4.18 || status=1  # has no published wheel
    for package in "${PACKAGES[@]}"; do
        python3 -m pip download -q --no-deps --only-binary=:all: --find-links "$out" --python-version "$version" \
            --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux2014_x86_64 \
            --platform any -d "$out" "$package" || { echo "could not get $package" >&2 && status=1; }
    done
    du -sh "$out"
    exit $status
fi
if [ "$part" = all ]; then
    status=0
    for each in right kernels programs; do "$0" "$each" "$out" ${3:+"$3"} || status=1; done
    exit $status
fi

toy=${TOY:-0}
if [ "$toy" = 1 ]; then
    export TRITON_INTERPRET=1 CUDA_VISIBLE_DEVICES="" OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    device=cpu
else
    device=cuda
fi
logs=$out/$part
mkdir -p "$logs"
: > "$logs/steps.tsv"
deadline=$((SECONDS + (toy == 1 ? 1800 : 540)))
python=${PYTHON:-$out/venv/bin/python}
ssamba="$python -m ssamba_upstream"
steps="$python scripts/gpu_steps.py --device $device --out $out"

note() { printf '%s\t%s\t%s\t%s\n' "$@" | tee -a "$logs/steps.tsv"; }

# step NAME SECONDS COMMAND...: runs a command with a time limit and records the outcome.
step() {
    local name=$1 limit=$2 left=$((deadline - SECONDS)) begun=$SECONDS status=0
    shift 2
    [ "$toy" = 1 ] && limit=$((3 * limit))  # the CPU may be shared
    if ((left < 5)); then
        note "$name" "left out" 0 "the part had no time left"
        return 1
    fi
    timeout -k 10 $((limit < left ? limit : left)) "$@" > "$logs/$name.txt" 2>&1 || status=$?
    case $status in
        0) note "$name" passed $((SECONDS - begun)) "" ;;
        124 | 137) note "$name" "left out" $((SECONDS - begun)) "timed out; its output is in $part/$name.txt" ;;
        *) note "$name" FAILED $((SECONDS - begun)) "status $status; see $part/$name.txt" ;;
    esac
    return $status
}

# with_tool TOOL NAME SECONDS COMMAND...: runs a step under a CUDA tool, if it is installed.
with_tool() {
    local tool=$1 name=$2
    if [ "$toy" != 1 ] && ! command -v "${tool%% *}" > /dev/null; then
        note "$name" "left out" 0 "${tool%% *} is not on this machine"
        return
    fi
    [ "$toy" = 1 ] && tool=env
    # shellcheck disable=SC2086
    step "$name" "$3" $tool "${@:4}"
}

is_there() { "$python" -c "import importlib.metadata as m; m.version('${1%%[=>]*}')" 2> /dev/null; }

# install WHEELS PACKAGE...: installs the missing packages, and this one, into an environment that sees python3's.
# python3 may itself be an environment, which --system-site-packages would ignore.
install() {
    if [ ! -x "$python" ]; then
        python3 -m venv --without-pip "$out/venv" || return 1
        python3 -c "import site; folders = [*site.getsitepackages(), site.getusersitepackages()]
print(f'import site; [*map(site.addsitedir, {folders})]')" \
            > "$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/what_python3_sees.pth"
    fi
    local wheels=() missing=() file package
    for file in "$1"/*.whl; do
        [ ! -e "$file" ] || is_there "$(basename "$file" | cut -d- -f1)" || wheels+=("$file")
    done
    echo "missing here, installed from $1: ${wheels[*]:-nothing}"
    [ ${#wheels[@]} = 0 ] || "$python" -m pip install -q --no-index --no-deps "${wheels[@]}" || return 1
    for package in "${@:2}"; do is_there "$package" || missing+=("$package"); done
    [ ${#missing[@]} = 0 ] || echo "still missing; on a machine with a network, run: scripts/gpu_check.sh collect WHEELS" \
        "$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" "${missing[*]}"
    is_there ssamba-upstream || "$python" -m pip install -q --no-index --no-deps --no-build-isolation -e . ||
        echo "ssamba-upstream cannot be installed, so the checkout is used, without its CPU kernel"
    "$python" -c "import ssamba_upstream, s3prl, soundfile"
}
export -f install is_there
export out python

describe() {
    nvidia-smi || true
    # Triton builds its launcher with these.
    cc --version | head -n 1 && "$python" -c 'import sysconfig; print(sysconfig.get_path("include"))' | xargs ls -d
    $ssamba info --system
    "$python" -m pip list 2> /dev/null
}
export -f describe
export ssamba

right() {
    step machine 30 bash -c describe
    step against-the-cpu 120 $steps against-the-cpu
    step graph 60 $steps graph
    step compile 120 $steps compile
    local tests=(-n 8 -m "gpu or triton")  # most of the time is compilation
    [ "$toy" = 1 ] && tests=(tests/ops/test_triton_scan.py -k "softplus or nothing")
    step tests 300 "$python" -m pytest -q --maxfail=20 -p no:cacheprovider --junitxml "$logs/tests.xml" "${tests[@]}"
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1  # otherwise an out-of-bounds access could land in another tensor
    with_tool "compute-sanitizer --tool memcheck --error-exitcode 1" memcheck 90 $steps one-pass
    with_tool "compute-sanitizer --tool initcheck --error-exitcode 1" initcheck 90 $steps one-pass
}

kernels() {
    local rounds=5
    [ "$toy" = 1 ] && rounds=1
    step ceilings 60 $steps ceilings
    step launches 90 $steps launches
    step scan 180 $steps scan --rounds $rounds
    with_tool "ncu --set full --clock-control none -k regex:scan --page details -f -o $logs/ncu" ncu 60 $steps scan-pass
    step sweeps 240 $steps sweeps --rounds $rounds
}

# pretrain NAME SECONDS FIELD=VALUE...
pretrain() {
    rm -rf "$run-$1"
    # shellcheck disable=SC2086
    step "pretrain-$1" "$2" $ssamba pretrain tiny_400 --out "$run-$1" --device $device \
        --set $changes $sizes steps=$long warmup_steps=2 join_short=true "${@:3}"
}

programs() {
    local corpora=$out/corpora words=$out/corpora/speech_commands_v0.01 tokens="512 1024 4096 22528 65536" run=$out/run
    local changes="train=$out/train.jsonl validation=$out/validation.jsonl workers=8 log_every=20 validate_every=100000"
    local long=100 sizes="batch_size=64 save_every=50"
    if [ "$toy" = 1 ]; then
        tokens=128 long=4
        sizes="batch_size=2 save_every=2 model.num_hidden_layers=2 model.pretraining_frames=64 model.masked_patches=20"
        changes="${changes/workers=8/workers=0}"
        changes="${changes/log_every=20/log_every=1}"
    fi
    [ -d "$corpora" ] || step corpora 60 $ssamba corpora synth --out "$corpora"
    step manifests 30 $ssamba manifest "$words" --out "$out/train.jsonl"
    step manifest 30 $ssamba manifest "$corpora/VoxCeleb1" --out "$out/validation.jsonl"
    for precision in float32 tf32 bfloat16; do
        pretrain $precision 75 precision=$precision
    done
    rm -rf "$run-stopped"
    local goes_on=($ssamba pretrain tiny_400 --out "$run-stopped" --device $device --resume
        --set $changes $sizes join_short=true warmup_steps=2)
    step stop 60 bash -c '"$@" & run=$!; until [ -e "$0/states" ] && ls "$0"/states/*.pt > /dev/null 2>&1; do
        kill -0 $run || exit 1; sleep 1; done; kill -TERM $run; wait $run; [ $? = 130 ]' \
        "$run-stopped" "${goes_on[@]}" steps=100000
    step resume 75 $steps resume "$run-stopped" "${goes_on[@]}"
    rm -rf "$run-torchrun"
    step torchrun 60 "$python" -m torch.distributed.run --standalone --nproc-per-node 1 -m ssamba_upstream pretrain \
        tiny_400 --out "$run-torchrun" --device $device --set $changes $sizes steps=3 warmup_steps=2 join_short=true
    rm -rf "$out/hidden"
    step extract 45 $ssamba extract "$run-float32/last" "$corpora/VoxCeleb1" --out "$out/hidden" --device $device
    local data=config.downstream_expert.datarc
    rm -rf "$out/keyword_spotting"
    step keyword-spotting 90 "$python" scripts/run_downstream.py -m train -u ssamba_tiny -k "$run-float32/last" \
        -d speech_commands -c keyword_spotting -p "$out/keyword_spotting" --device $device \
        -o "$data.speech_commands_root=$words,,$data.speech_commands_test_root=$corpora/speech_commands_test_set_v0.01,,$data.num_workers=0,,config.runner.total_steps=10,,config.runner.log_step=5,,config.runner.eval_step=10,,config.runner.save_step=10,,config.runner.eval_dataloaders=['dev']"
    # shellcheck disable=SC2086
    step efficiency 120 $steps efficiency $tokens
    pretrain bfloat16-compiled 150 precision=bfloat16 compile=true
    $steps speeds "$run"-* > "$logs/speeds.txt" 2>&1
}

main() {
    wheels=${3:+$(realpath "$3")}
    step install 120 bash -c 'install "$@"' _ "${wheels:-/nowhere}" "${PACKAGES[@]}" && "$part"
    python3 scripts/gpu_steps.py --out "$out" summary
    ! grep -q FAILED "$logs/steps.tsv"
    exit
}
main "$@"
