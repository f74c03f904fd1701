"""``ssamba extract``, ``probe``, ``probe-frames`` and ``layer-weights``."""

from pathlib import Path

from .options import (
    CHECKPOINT,
    add_checkpoint,
    add_device,
    add_out,
    add_upstream_config,
    counted,
    find_recordings,
    name_skipped,
    summarise,
    upstream_options,
    warn,
)


def add_commands(commands):
    extract = commands.add_parser("extract", help="write frame-level hidden states of recordings")
    add_checkpoint(extract)
    extract.add_argument("recordings", type=Path, nargs="+", metavar="RECORDING",
                         help="audio files, folders of them, or manifests")
    add_out(extract, "folder to write to, new or from an earlier run with the same settings")
    add_upstream_config(extract)
    extract.add_argument("--layers", type=int, nargs="+", metavar="LAYER",
                         help="layers to write, where 0 is the tokens before the blocks; default: all")
    extract.add_argument("--dtype", choices=("float16", "float32"), default="float32",
                         help="data type in the files; default: float32")
    extract.add_argument("--format", choices=("safetensors", "npy"), default="safetensors",
                         help="format of the files; default: safetensors")
    extract.add_argument("--batch-secs", type=float, default=60.0, help="seconds of audio in a batch; default: 60")
    extract.add_argument("--cache", type=Path, metavar="FOLDER",
                         help="share cached hidden states of the same dtype with run_downstream.py and superb")
    add_device(extract)
    extract.set_defaults(run=_extract)

    probe = commands.add_parser("probe", help="train linear probes, and SUPERB's classifier, on all layers at once")
    probe.add_argument("set", type=Path, metavar="SET",
                       help="CSV with the columns path, label and optionally split and group, such as the speaker; or "
                            "a folder with one subfolder per class")
    _add_checkpoints_and_cache(probe, Path("result/probe"))
    probe.add_argument("--corpus", choices=("sid", "er", "ks", "ic"),
                       help="SET is the folder of VoxCeleb1 (sid), IEMOCAP (er), Speech Commands (ks) or Fluent Speech "
                            "Commands (ic)")
    probe.add_argument("--head-steps", type=int, metavar="N",
                       help="training steps of SUPERB's classifier; default: 5000, or those of the --corpus's task")
    probe.add_argument("--head-learning-rates", type=float, nargs="+", default=[1e-4], metavar="RATE",
                       help="learning rates to try for SUPERB's classifier; dev chooses one; default: 1e-4")
    probe.set_defaults(run=_probe)

    frames = commands.add_parser("probe-frames", help="train linear probes on frames, with labels such as phones")
    frames.add_argument("set", type=Path, metavar="SET",
                        help="CSV or TSV with the columns path, start, end (in seconds), label and optionally split "
                             "and group, such as the speaker")
    _add_checkpoints_and_cache(frames, Path("result/probe-frames"))
    frames.add_argument("--corpus", choices=("timit",), help="SET is the folder of TIMIT")
    frames.add_argument("--frames", type=int, default=10_000, metavar="N",
                        help="maximum number of labelled frames, drawn at random; default: 10000")
    frames.set_defaults(run=_probe_frames)

    weights = commands.add_parser("layer-weights", help="print the layers' weights in a checkpoint of s3prl's runner")
    weights.add_argument("checkpoint", type=Path, help="checkpoint of s3prl's runner, such as dev-best.ckpt")
    weights.set_defaults(run=_layer_weights)


def _add_checkpoints_and_cache(command, out):
    add_checkpoint(command, "checkpoints", nargs="+",
                   help=f"{CHECKPOINT}; or log-mel, the baseline without a network. All are drawn in one plot")
    add_out(command, "folder for the results", default=out)
    add_upstream_config(command)
    command.add_argument("--cache", type=Path, help="folder for cached hidden states; default: cache in OUT")
    command.add_argument("--dtype", choices=("float32", "float16"), default="float32",
                         help="data type in the cache; default: float32")
    add_device(command)


def _extract(options):
    from ..extraction import extract
    from ..training.distributed import choose_device

    recordings, unreadable_folders = find_recordings(options.recordings)
    written, skipped = extract(
        recordings, options.checkpoint, options.out, options.layers, options.dtype, options.format, options.batch_secs,
        choose_device(options.device), report=warn, cache=options.cache, **upstream_options(options),
    )
    return summarise(f"wrote {counted(written, 'file')} below {options.out}", len(recordings), written, skipped,
                     unreadable_folders)


def _probe(options):
    from ..corpora.labelled import read_labelled
    from ..corpora.superb.sets import CORPORA, read_superb
    from ..probing.study import probe
    from ..probing.superb_head import DEFAULT_SCHEDULE, SUPERB_SCHEDULES
    from ..training.distributed import choose_device

    data = read_superb(options.corpus, options.set) if options.corpus else read_labelled(options.set)
    source = CORPORA[options.corpus].NAME if options.corpus else options.set.name
    schedule = SUPERB_SCHEDULES.get(options.corpus, DEFAULT_SCHEDULE)
    if options.head_steps is not None:
        schedule = schedule.of_steps(options.head_steps)
    results = probe(
        data, options.checkpoints, options.out, schedule, source=source,
        head_learning_rates=options.head_learning_rates, cache=options.cache,
        device=choose_device(options.device), dtype=options.dtype, **upstream_options(options),
    )
    return _print_report(results, options.out)


def _probe_frames(options):
    from ..corpora.alignments import read_alignments
    from ..corpora.timit import read_timit
    from ..probing.frame_study import probe_frames
    from ..training.distributed import choose_device

    aligned = read_timit(options.set) if options.corpus else read_alignments(options.set)
    results = probe_frames(
        aligned, options.checkpoints, options.out, source="TIMIT" if options.corpus else options.set.name,
        most_frames=options.frames,
        cache=options.cache, device=choose_device(options.device), dtype=options.dtype, **upstream_options(options),
    )
    return _print_report(results, options.out)


def _print_report(results, out):
    """Print the report's summary and the skipped files. Return the exit status."""
    summary = (out / "results.md").read_text(encoding="utf-8").split("\n\n## ")[0].strip()
    print(f"{summary}\n\nwrote {out}")
    return name_skipped(results["unreadable"])


def _layer_weights(options):
    from ..probing.superb_head import read_layer_weights

    for layer, weight in enumerate(read_layer_weights(options.checkpoint)):
        print(f"{layer:5} {weight:.6f}")
