#!/usr/bin/env bash
# Runs five SUPERB tasks on real speech with s3prl and frozen upstreams. The Free Spoken Digit Dataset is used for
# keyword spotting and speaker identification, and in utterances of three joined digits for intents, phones and letters.
#
#     scripts/digits.sh RECORDINGS OUT UPSTREAM...    # a checkpoint's path, ssamba_starter, fbank
#
# Needs the extra superb-all. RECORDINGS is the dataset's folder of wav files. The table is OUT/UPSTREAM/results.md. Run
# the same command again to continue an interrupted run. ASR trains in parallel with the other tasks, with one thread
# each. Its two BLSTMs have a width of 256 instead of 1024, so that they train in minutes on a CPU. SpecAugment's time
# masks have at most 20 frames instead of 40, because the utterances last one to two seconds.
set -euo pipefail
recordings=$1 out=$2
shift 2
ssamba=$(dirname "$0")/../.venv/bin/ssamba
masks="config.specaug.time_mask_width_range=[0,20]"
export OMP_NUM_THREADS=1
data=config.downstream_expert.datarc corpus=config.downstream_expert.corpus model=config.downstream_expert.modelrc

[ -d "$out/single" ] || "$ssamba" corpora fsdd "$recordings" --out "$out/single"
[ -d "$out/joined" ] || "$ssamba" corpora fsdd-joined "$recordings" --out "$out/joined"

# measure UPSTREAM TASK CORPUS STEPS "LEARNING RATES" DEV OVERRIDES [OPTION...]: runs a task, with DEV at the end only.
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
    # s3prl's ASR halves its batches, to 8 utterances per step.
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
