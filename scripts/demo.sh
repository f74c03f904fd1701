#!/usr/bin/env bash
# demo.sh [OUT]: gets a first SUPERB result from a clean clone. It probes the layers of the bundled checkpoint,
# pretrains a small network on synthetic speech, and trains keyword spotting on the frozen network. All output goes to
# OUT, a new folder (default: result/demo).
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-result/demo}

scripts/setup.sh superb,pretraining,probing
ssamba=.venv/bin/ssamba
$ssamba corpora synth --out "$out/corpora"
$ssamba probe "$out/corpora" ssamba_starter --corpus ks --head-steps 200 \
    --head-learning-rates 1e-4 1e-3 1e-2 --device cpu --out "$out/probe"
words=$out/corpora/speech_commands_v0.01
$ssamba manifest "$words" --out "$out/train.jsonl"
$ssamba manifest "$out/corpora/VoxCeleb1" --out "$out/validation.jsonl"
$ssamba pretrain smoke --out "$out/pretraining" --device cpu \
    --set "train=$out/train.jsonl" "validation=$out/validation.jsonl"

data=config.downstream_expert.datarc
.venv/bin/python scripts/run_downstream.py -m train -u ssamba_tiny -k "$out/pretraining/best" \
    -d speech_commands -c keyword_spotting -p "$out/keyword_spotting" --device cpu \
    -o "$data.speech_commands_root=$words,,\
        $data.speech_commands_test_root=$out/corpora/speech_commands_test_set_v0.01,,$data.num_workers=0,,\
        config.optimizer.lr=3.0e-3,,config.runner.total_steps=200,,config.runner.log_step=50,,\
        config.runner.eval_step=100,,config.runner.save_step=100,,config.runner.eval_dataloaders=['dev']"
.venv/bin/python scripts/run_downstream.py -m evaluate -e "$out/keyword_spotting/dev-best.ckpt" --device cpu

echo
# s3prl's last line gives the test accuracy, as in "test at step 0: 0.5".
accuracy=$(tail -n 1 "$out/keyword_spotting/log.log" | awk '{printf "%.1f %%", 100 * $NF}')
echo "Keyword spotting: test accuracy $accuracy (12 classes)"
echo "Corpora      $out/corpora"
echo "Probes       $out/probe (layers.png, results.md)"
echo "Pretraining  $out/pretraining (best, last, log.jsonl, TensorBoard curves)"
echo "Downstream   $out/keyword_spotting (dev-best.ckpt, log.log, test_predict.txt, TensorBoard curves)"
