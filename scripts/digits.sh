#!/usr/bin/env bash
# Five of SUPERB's tasks on real speech, frozen, through s3prl: the Free Spoken Digit Dataset as keyword spotting and
# speaker identification, and joined three digits at a time as intents, phones and letters.
#
#     scripts/digits.sh RECORDINGS OUT UPSTREAM...    # a checkpoint's path, ssamba_starter, fbank
#
# Needs the extra superb-all. RECORDINGS is the dataset's folder of wav files, OUT/UPSTREAM/results.md the table. The
# same command continues where it was interrupted. ASR trains next to the other tasks, with one thread each. Its two
# BLSTMs have a width of 256 instead of 1024, so that a CPU trains them in minutes, and SpecAugment's time masks at most
# 20 frames instead of 40, since the utterances last one to two seconds.
set -euo pipefail
recordings=$1 out=$2
shift 2
ssamba=$(dirname "$0")/../.venv/bin/ssamba
masks="config.specaug.time_mask_width_range=[0,20]"
export OMP_NUM_THREADS=1
data=config.downstream_expert.datarc corpus=config.downstream_expert.corpus model=config.downstream_expert.modelrc

[ -d "$out/single" ] || "$ssamba" corpora fsdd "$recordings" --out "$out/single"
[ -d "$out/joined" ] || "$ssamba" corpora fsdd-joined "$recordings" --out "$out/joined"

# measure UPSTREAM TASK CORPUS STEPS "LEARNING RATES" DEV OVERRIDES [OPTION...]: evaluates on dev at the last step only.
measure() {
    local steps="config.runner.total_steps=$4,,config.runner.eval_step=$4,,config.runner.save_step=$4"
    # shellcheck disable=SC2086
    "$ssamba" superb "$1" --out "$out/$(basename "$1")" --device cpu --cache "$out/cache" "--$2" "$3" \
        --learning-rates $5 "${@:8}" -o \
        "$steps,,config.runner.log_step=10,,config.runner.eval_dataloaders=['$6'],,$7"
}

for upstream; do
    hop=(-g hop_20ms)
    [ "$upstream" = fbank ] && hop=()
    # s3prl's ASR halves its batches: 8 utterances a step.
    measure "$upstream" asr "$out/joined/LibriSpeech" 600 1e-3 dev-clean \
        "$data.num_workers=0,,$data.batch_size=16,,$model.project_dim=256,,$model.RNNs.dim=[256,256],,$masks" \
        "${hop[@]}" > "$out/$(basename "$upstream")-asr.log" 2>&1 &
    letters=$!
    measure "$upstream" ks "$out/single" 200 "1e-3 1e-2" dev "$data.num_workers=0"
    measure "$upstream" sid "$out/single/VoxCeleb1" 100 "1e-3 1e-2" dev "$data.num_workers=0"
    measure "$upstream" ic "$out/joined/fluent_speech_commands_dataset" 200 "1e-3 3e-3" dev "$data.num_workers=0"
    measure "$upstream" pr "$out/joined/LibriSpeech" 300 "1e-3 3e-3" dev \
        "$corpus.num_workers=0,,$corpus.batch_size=8,,config.runner.gradient_accumulate_steps=1" "${hop[@]}"
    wait "$letters"
    cat "$out/$(basename "$upstream")/results.md"
done
