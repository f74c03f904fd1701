"""``ssamba export``, ``classify`` and ``listen``."""

import csv
import json
import sys
from pathlib import Path

from .options import (
    CHECKPOINT,
    add_checkpoint,
    add_device,
    add_out,
    add_upstream_config,
    counted,
    find_recordings,
    summarise,
    upstream_options,
    warn,
)


def add_commands(commands):
    export = commands.add_parser("export", help="export a checkpoint to ONNX and compare it with the network")
    add_checkpoint(export)
    add_out(export, "file to write", "OUT.onnx")
    export.add_argument("--input", choices=("waveform", "log_mel"), default="waveform",
                        help="input of the graph; default: waveform")
    export.add_argument("--output", choices=("hidden_states", "embedding", "logits"),
                        help="output of the graph; default: logits of a classifier, else embedding, the mean over time")
    export.add_argument("--int8", action="store_true", help="quantise the weights of linear layers to eight bits")
    export.add_argument("--stream", action="store_true", help="export a causal network that reads one chunk at a time")
    add_upstream_config(export)
    export.set_defaults(run=_export)

    classify = commands.add_parser("classify", help="classify recordings of any length into a CSV table")
    add_checkpoint(classify, "model", help=f"fine-tuned classifier: {CHECKPOINT}")
    classify.add_argument("recordings", type=Path, nargs="+", metavar="RECORDING",
                          help="audio files, folders of them, or manifests")
    add_out(classify, "table to write, or to continue with the same settings", "FILE.csv")
    classify.add_argument("--every", type=float, metavar="SECONDS",
                          help="time between the starts of windows; default: the length of a window, which is that of "
                               "the clips in training")
    classify.add_argument("--all-labels", action="store_true",
                          help="write a line for every label of a window; default: the best label, or for multi-label "
                               "classifiers all labels from 0.5")
    add_device(classify)
    classify.set_defaults(run=_classify)

    listen = commands.add_parser("listen", help="print a causal classifier's detections as audio arrives")
    add_checkpoint(listen, "model", help=f"fine-tuned causal classifier: {CHECKPOINT}")
    source = listen.add_mutually_exclusive_group()
    source.add_argument("recording", type=Path, nargs="?", metavar="RECORDING",
                        help="audio file; default: raw PCM from standard input, 16 bits, one channel, at the model's "
                             "sampling rate")
    source.add_argument("--microphone", action="store_true", help="read the default microphone with sounddevice")
    listen.add_argument("--threshold", type=float, default=0.5, help="minimum probability of a detection; default: 0.5")
    listen.add_argument("--smooth", type=float, metavar="SECONDS",
                        help="length of audio in each decision; default: as in training")
    listen.add_argument("--json", action="store_true", help="print lines of JSON instead of CSV")
    add_device(listen)
    listen.set_defaults(run=_listen)


def _export(options):
    from ..deployment.onnx_export import export

    encoder_options = upstream_options(options) if options.upstream_config else {}
    measured = export(options.checkpoint, options.out, options.input, options.output, options.int8,
                      options.stream, **encoder_options)
    print(f"wrote {options.out}: {measured.size / 1e6:.1f} MB")
    for name, difference in measured.differences.items():
        largest = measured.magnitudes[name]
        print(f"{name}: differs by at most {difference:.1e} from the network's, of up to {largest:.3g}")
    times = ", ".join(f"{name} {milliseconds:.0f} ms" for name, milliseconds in measured.milliseconds.items())
    print(f"an utterance of 10 s takes: {times}")


def _classify(options):
    from ..deployment.recordings import classify
    from ..training.distributed import choose_device

    recordings, unreadable_folders = find_recordings(options.recordings)
    written, skipped = classify(options.model, recordings, options.out, options.every, options.all_labels,
                                choose_device(options.device), report=warn)
    return summarise(f"wrote {options.out}: {counted(written, 'recording')}", len(recordings), written, skipped,
                     unreadable_folders)


def _listen(options):
    from ..deployment.listening import Listener, microphone, raw_samples, recording
    from ..training.distributed import choose_device

    listener = Listener(options.model, options.threshold, options.smooth, choose_device(options.device))
    if options.recording:
        source = recording(options.recording, listener)
    else:
        source = microphone(listener) if options.microphone else raw_samples(sys.stdin.buffer, listener)
    table, fields = csv.writer(sys.stdout, lineterminator="\n"), ("seconds", "label", "score")
    if not options.json:
        table.writerow(fields)
        sys.stdout.flush()

    def tell(detections):
        for seconds, label, score in detections:
            line = round(seconds, 3), label, round(score, 4)
            print(json.dumps(dict(zip(fields, line)))) if options.json else table.writerow(line)
        sys.stdout.flush()

    try:
        for samples in source:
            tell(listener.hear(samples))
    except KeyboardInterrupt:  # the usual way to stop
        pass
    tell(listener.hear())
