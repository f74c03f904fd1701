"""The ``ssamba`` command."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from ..checkpoint import CheckpointError, load_model, save_model
from ..frames import UpstreamOptions
from ..network.classification import SsambaClassifier
from ..network.configuration import HIDDEN_SIZES, SsambaConfig
from ..network.modeling import SsambaModel
from .. import extraction, ops
from ..benchmark.efficiency import TOKENS
from ..benchmark.efficiency_report import study
from ..benchmark.model import bench_model
from ..benchmark.pretraining import bench_pretraining
from ..benchmark.scan import bench_scan
from ..benchmark.timing import write_table
from ..corpora import preparation
from ..corpora.labelled import read_labelled
from ..corpora.manifest import find_audio, read_manifest, scan
from ..network.pretraining import SsambaForPreTraining
from ..pretraining.recipe import PretrainingRecipe
from ..probing import cache
from ..corpora import superb_sets
from ..probing.study import probe
from ..probing.report import MOST_SEEDS
from ..probing.superb_head import DEFAULT_RECIPE, SUPERB_RECIPES, read_layer_weights
from ..corpora.fsdd import arrange_fsdd
from ..corpora.iemocap import build_emotion_metadata, check_emotion
from ..corpora.speech_commands import check_keyword_spotting
from ..corpora.synthetic_corpora import synthesise_corpora
from ..corpora.voxceleb1 import check_speaker_identification
from ..superb import hidden_set, submission
from ..training.recipe import read_recipe
from ..training.training_state import TrainingError

INTERRUPTED = 130  # exit status after a signal, by the shell's convention


def main(arguments=None):
    """Run one ``ssamba`` command; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["run-downstream"]:
        from ..plugin.runner import main as run_downstream

        return run_downstream(arguments[1:])
    options = _parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except (CheckpointError, OSError, ValueError, TrainingError) as error:
        print(f"ssamba: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f"ssamba: {error}; install this package's extras superb, pretraining, "
              "finetuning and probing", file=sys.stderr)
        return 1


def _parser():
    parser = argparse.ArgumentParser(prog="ssamba", description="SSAMBA checkpoints, pretraining, corpora and SUPERB runs.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run-downstream", help="s3prl's run_downstream with the SSAMBA upstreams; takes its arguments")
    _add_init(commands)
    _add_convert(commands)
    _add_info(commands)
    _add_corpora(commands)
    _add_manifest(commands)
    _add_prepare(commands)
    _add_pretrain(commands)
    _add_show_masks(commands)
    _add_finetune(commands)
    _add_extract(commands)
    _add_probe(commands)
    _add_layer_weights(commands)
    _add_bench(commands)
    _add_superb(commands)
    _add_submit(commands)
    _add_export_hidden_set(commands)
    return parser


def _add_init(commands):
    parser = commands.add_parser("init", help="write a checkpoint with random weights, for trying things out")
    parser.add_argument("--size", choices=HIDDEN_SIZES, default="tiny", help="default: tiny")
    parser.add_argument("--block-order", choices=("sequential", "paired"), default="sequential",
                        help="default: sequential")
    parser.add_argument("--norm", choices=("layer_norm", "rms_norm"), default="layer_norm", help="default: layer_norm")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("out", type=Path, help="a new folder, or a file ending in .safetensors or .ckpt")
    parser.set_defaults(run=_init)


def _init(options):
    torch.manual_seed(options.seed)
    config = SsambaConfig.from_size(options.size, block_order=options.block_order, norm=options.norm)
    save_model(SsambaModel(config), options.out)
    print(f"wrote {options.out}: {options.size}, random weights, seed {options.seed}")


def _add_convert(commands):
    parser = commands.add_parser("convert", help="convert a checkpoint of the published code, or between our formats")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--block-order", choices=("paired", "sequential"),
                        help="default: what the checkpoint says; paired for the published code's")
    parser.add_argument("out", type=Path, help="a new folder, or a file ending in .safetensors or .ckpt")
    parser.set_defaults(run=_convert)


def _convert(options):
    model = load_model(options.checkpoint, block_order=options.block_order, model_class=None)
    save_model(model, options.out)
    print(f"wrote {options.out}: {type(model).__name__}, {_count(model):,} parameters")


def _add_info(commands):
    parser = commands.add_parser("info", help="print what a checkpoint is, or what computes on this machine")
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument("checkpoint", type=Path, nargs="?")
    subject.add_argument("--system", action="store_true", help="versions, and which scan backends there are")
    parser.set_defaults(run=_info)


def _info(options):
    if options.system:
        return _system_info()
    model = load_model(options.checkpoint, model_class=None)
    config = model.config
    rows, columns = config.position_grid
    lines = {
        "checkpoint": options.checkpoint,
        "size": config.size or "unpublished",
        "parameters": f"{_count(model.base_model):,}",
        "blocks": f"{config.num_hidden_layers}, {config.block_order}, {config.norm}",
        "width": f"{config.hidden_size}, {config.intermediate_size} channels, {config.state_size} states",
        "patches": f"{config.patch_size[0]} mel bands x {config.patch_size[1]} frames",
        "positions": f"{rows} x {columns}, from clips of {config.pretraining_frames / 100:g} s",
        "hidden states": f"{config.num_hidden_layers + 1}",
    }
    if isinstance(model, SsambaClassifier):
        lines["classes"] = f"{config.num_labels}: {', '.join(config.id2label.values())}"
    for name, value in lines.items():
        print(f"{name:14} {value}")


def _system_info():
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, compiled CPU kernels for "
          f"{ops.cpu.instruction_set or 'no instruction set'}")
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        name = torch.cuda.get_device_name() if device == "cuda" else "float32"
        print(f"scan on {device} ({name}): {ops.choose_backend(torch.empty(0, device=device))}")
        for backend in ops.BACKENDS:
            print(f"  {backend:10} {ops.unavailable_reason(backend, device) or 'available'}")


def _count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def _add_corpora(commands):
    parser = commands.add_parser("corpora", help="check SUPERB's corpora, or make small ones")
    actions = parser.add_subparsers(dest="action", required=True)

    check = actions.add_parser("check", help="say whether a corpus is laid out as s3prl needs it, and what is missing")
    check.add_argument("task", choices=CORPUS_CHECKS, help="sid: VoxCeleb1; er: IEMOCAP; ks: Speech Commands")
    check.add_argument("root", type=Path)
    check.add_argument("second", type=Path, nargs="?", metavar="SPLIT_FILE|METADATA|TEST_ROOT",
                       help="sid: the split file; er: the metadata folder; ks: the test set's folder. "
                            "Default: looked for in the corpus's folder")
    check.set_defaults(run=_check_corpus)

    metadata = actions.add_parser("emotion-metadata", help="write the metadata of IEMOCAP's five folds for s3prl")
    metadata.add_argument("root", type=Path, help="the folder of Session1 to Session5")
    metadata.add_argument("out", type=Path)
    metadata.set_defaults(run=_build_metadata)

    synthesise = actions.add_parser("synth", help="make small synthetic corpora in the three official layouts")
    synthesise.add_argument("out", type=Path, help="a new folder")
    synthesise.add_argument("--seed", type=int, default=0, help="default: 0")
    synthesise.set_defaults(run=_synthesise_corpora)

    fsdd = actions.add_parser("fsdd", help="arrange the Free Spoken Digit Dataset as Speech Commands and VoxCeleb1")
    fsdd.add_argument("recordings", type=Path, help="the dataset's folder of wav files")
    fsdd.add_argument("out", type=Path, help="a new folder")
    fsdd.set_defaults(run=_arrange_fsdd)


CORPUS_CHECKS = {
    "sid": check_speaker_identification,
    "er": check_emotion,
    "ks": check_keyword_spotting,
}


def _check_corpus(options):
    report = CORPUS_CHECKS[options.task](options.root, options.second)
    print(report)
    return 0 if report.ok else 1


def _build_metadata(options):
    build_emotion_metadata(options.root, options.out)
    print(f"wrote {options.out}")


def _synthesise_corpora(options):
    synthesise_corpora(options.out, options.seed)
    print(f"wrote {options.out}")


def _arrange_fsdd(options):
    arrange_fsdd(options.recordings, options.out)
    print(f"wrote {options.out}")


def _add_manifest(commands):
    parser = commands.add_parser("manifest", help="list the audio below folders, for pretraining")
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("out", type=Path, metavar="OUT.jsonl")
    parser.set_defaults(run=_manifest)


def _manifest(options):
    found = scan(options.folders, options.out)
    print(f"wrote {options.out}: {found.files} files, {found.hours:.2f} hours")
    if found.unreadable:
        print(f"{len(found.unreadable)} files cannot be read, see {options.out}.unreadable.txt")


def _add_prepare(commands):
    parser = commands.add_parser("prepare", help="turn a downloaded data set into a labelled set, and check it")
    parser.add_argument("set", choices=preparation.SETS, help="which")
    parser.add_argument("root", type=Path, help="its folder; where it is not there, the answer says what to download")
    parser.add_argument("out", type=Path, metavar="OUT.csv")
    parser.set_defaults(run=_prepare)


def _prepare(options):
    print(preparation.prepare(options.set, options.root, options.out))
    print(f"wrote {options.out}")


def _add_pretrain(commands):
    parser = commands.add_parser("pretrain", help="pretrain a network; under torchrun, on many GPUs")
    _add_training_arguments(parser, "tiny_400 or smoke", "train=my.jsonl model.norm=rms_norm")
    parser.set_defaults(run=_pretrain)


def _pretrain(options):
    from ..pretraining.trainer import pretrain

    recipe = read_recipe(options.recipe, PretrainingRecipe, options.overrides)
    finished = pretrain(recipe, options.out, options.resume, options.device)
    return 0 if finished else INTERRUPTED


def _add_finetune(commands):
    parser = commands.add_parser("finetune", help="fine-tune a checkpoint to a classifier; under torchrun, on many GPUs")
    _add_training_arguments(parser, "esc50 or speech_commands_v1", "data=my.csv checkpoint=RUN/best")
    parser.set_defaults(run=_finetune)


def _finetune(options):
    from ..finetuning.recipe import FinetuningRecipe
    from ..finetuning.trainer import finetune
    from ..training.distributed import rank

    recipe = read_recipe(options.recipe, FinetuningRecipe, options.overrides)
    results = finetune(recipe, options.out, options.resume, options.device)
    if results is None:
        return INTERRUPTED
    if rank() > 0:
        return 0
    deviations = results.get("deviation", {})
    for name, value in results["test"].items():
        if isinstance(value, float):
            print(f"test {name} {value:.4f}" + (f" ± {deviations[name]:.4f}" if name in deviations else ""))


def _add_training_arguments(parser, recipes, fields):
    parser.add_argument("recipe", help=f"a YAML file, or one of the package's, such as {recipes}")
    parser.add_argument("out", type=Path, help="folder of the run")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", dest="overrides",
                        help=f"fields of the recipe to be changed, such as {fields}")
    parser.add_argument("--resume", action="store_true", help="go on with the run in OUT, if there is one")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")


def _add_show_masks(commands):
    parser = commands.add_parser("show-masks", help="draw a recording, its masked patches and their reconstruction")
    parser.add_argument("checkpoint", type=Path, help="one with the heads of pretraining")
    parser.add_argument("recording", type=Path)
    parser.add_argument("out", type=Path, metavar="OUT.png")
    parser.add_argument("--seed", type=int, default=0, help="of the mask; default: 0")
    parser.set_defaults(run=_show_masks)


def _show_masks(options):
    from ..pretraining.picture import show_masks

    model = load_model(options.checkpoint, model_class=SsambaForPreTraining)
    error = show_masks(model, options.recording, options.out, options.seed)
    print(f"wrote {options.out}; mean squared error of the masked patches {error:.4f}")


def _add_extract(commands):
    parser = commands.add_parser("extract", help="write frame-level hidden states of recordings")
    parser.add_argument("recordings", type=Path, nargs="+", metavar="RECORDING",
                        help="audio files, folders of them, or manifests")
    parser.add_argument("out", type=Path, metavar="OUT", help="a folder")
    parser.add_argument("-k", "--checkpoint", type=Path, required=True)
    parser.add_argument("--layers", type=int, nargs="+", metavar="LAYER", help="0: the tokens; default: all")
    parser.add_argument("--dtype", choices=extraction.DTYPES, default="float16", help="default: float16")
    parser.add_argument("--format", choices=extraction.FORMATS, default="safetensors", help="default: safetensors")
    parser.add_argument("--batch-secs", type=float, default=60.0, help="audio read at once; default: 60")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    parser.add_argument("-g", "--options", type=Path, help="YAML file of the upstream's options")
    parser.set_defaults(run=_extract)


def _extract(options):
    recordings, unreadable_folders = [], []
    for source in options.recordings:
        if source.is_dir():
            found, unreadable = find_audio([source])
            recordings += found
            unreadable_folders += unreadable
        else:
            recordings += read_manifest(source) if source.suffix in (".jsonl", ".json", ".tsv") else [source]
    written, left_out = extraction.extract(
        recordings, options.checkpoint, options.out, options.layers, options.dtype, options.format, options.batch_secs,
        options.device, **asdict(UpstreamOptions.read(options.options)),
    )
    print(f"wrote {written} files below {options.out}; {len(recordings) - written - left_out} were there, "
          f"{left_out} recordings are left out")
    for line in unreadable_folders:
        print(f"cannot be searched: {line}", file=sys.stderr)
    return 1 if left_out or unreadable_folders else 0


def _add_probe(commands):
    parser = commands.add_parser("probe", help="train linear probes, and SUPERB's classifier, on all layers at once")
    parser.add_argument("set", type=Path, metavar="SET",
                        help="CSV with the columns path, label and, if wanted, split; or a folder for each class")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="or fbank, for the filterbank")
    parser.add_argument("--compare", nargs="+", default=[], metavar="CHECKPOINT", help="more of them, in the same plot")
    parser.add_argument("--corpus", choices=superb_sets.CORPORA,
                        help="SET is the folder of VoxCeleb1 (sid), IEMOCAP (er) or Speech Commands (ks)")
    parser.add_argument("--out", type=Path, default=Path("result/probe"), help="default: result/probe")
    parser.add_argument("--cache", type=Path, help="folder for what is computed once; default: cache in OUT")
    parser.add_argument("--seeds", type=int, choices=range(1, MOST_SEEDS + 1), default=5, metavar="N",
                        help=f"random starts of the probes, at most {MOST_SEEDS}; default: 5")
    parser.add_argument("--head-steps", type=int, metavar="N",
                        help="of SUPERB's classifier; default: 5000, or with --corpus those of its task")
    parser.add_argument("--head-learning-rates", type=float, nargs="+", default=[1e-4], metavar="RATE",
                        help="of SUPERB's classifier, chosen on dev; default: 1e-4")
    parser.add_argument("--layers-alone", action="store_true",
                        help="SUPERB's classifier on each layer by itself, too, which s3prl's -l trains one a run")
    parser.add_argument("--window-secs", type=float, help="default: 10, or as in pretraining if that is shorter")
    parser.add_argument("--time-stride", type=int, default=10, help="default: 10")
    parser.add_argument("--frequency-stride", type=int, default=10, help="default: 10")
    parser.add_argument("--positions", choices=("physical", "published"), default="physical", help="default: physical")
    parser.add_argument("--dtype", choices=cache.DTYPES, default="float32", help="of the cache; default: float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.set_defaults(run=_probe)


def _probe(options):
    data = superb_sets.read_superb(options.corpus, options.set) if options.corpus else read_labelled(options.set)
    recipe = SUPERB_RECIPES.get(options.corpus, DEFAULT_RECIPE)
    if options.head_steps is not None:
        recipe = recipe.of_steps(options.head_steps)
    results = probe(
        data, [options.checkpoint, *options.compare], options.out, recipe, source=options.set.name, seeds=options.seeds,
        head_learning_rates=options.head_learning_rates, cache=options.cache,
        layers_alone=options.layers_alone, device=options.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        window_secs=options.window_secs, time_stride=options.time_stride, frequency_stride=options.frequency_stride,
        positions=options.positions, dtype=options.dtype,
    )
    summary = (options.out / "results.md").read_text(encoding="utf-8").split("\n\n## ")[0].strip()
    print(f"{summary}\n\nwrote {options.out}")
    for sentence in results["unreadable"]:
        print(f"left out: {sentence}", file=sys.stderr)
    return 1 if results["unreadable"] else 0


def _add_layer_weights(commands):
    parser = commands.add_parser("layer-weights", help="print the layers' weights in a checkpoint of s3prl's runner")
    parser.add_argument("checkpoint", type=Path, help="such as dev-best.ckpt")
    parser.set_defaults(run=_layer_weights)


def _layer_weights(options):
    for layer, weight in enumerate(read_layer_weights(options.checkpoint)):
        print(f"{layer:5} {weight:.6f}")


def _add_bench(commands):
    parser = commands.add_parser("bench", help="measure the scan's backends and peers, the network, its pretraining, or "
                                               "its efficiency beside SSAST's")
    subjects = parser.add_subparsers(dest="subject", required=True)
    scan = subjects.add_parser("scan", help="every backend of the scan, and its peers")
    model = subjects.add_parser("model", help="the network and its parts, on the upstream's windows")
    pretraining = subjects.add_parser("pretraining", help="the passes of pretraining and what their input costs")
    efficiency = subjects.add_parser("efficiency", help="SSAMBA against SSAST over the number of tokens; takes an hour")
    for subject in (model, pretraining):
        subject.add_argument("--size", choices=HIDDEN_SIZES, action="append", help="of the network; default: all")
    efficiency.add_argument("--size", choices=HIDDEN_SIZES, default="tiny", help="of both networks; default: tiny")
    efficiency.add_argument("--tokens", type=int, nargs="+", default=TOKENS, metavar="N",
                            help=f"multiples of 8; default: {' '.join(map(str, TOKENS))}")
    for subject in (scan, model, pretraining, efficiency):
        subject.add_argument("--rounds", type=int, default=5, help="default: 5")
        subject.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
        subject.add_argument("--out", type=Path, default=Path("result/bench"),
                             help="folder for the results; default: result/bench")
        subject.set_defaults(run=_bench)
    efficiency.set_defaults(run=_bench_efficiency)


def _bench(options):
    if options.subject == "scan":
        rows = bench_scan(options.device, options.rounds)
    else:
        measure = {"model": bench_model, "pretraining": bench_pretraining}[options.subject]
        rows = measure(options.device, options.rounds, options.size or tuple(HIDDEN_SIZES))
    path = options.out / f"{options.subject}.csv"
    print(write_table(rows, path))
    print(f"\n{options.rounds} rounds, medians, {torch.get_num_threads()} threads; wrote {path}")


def _bench_efficiency(options):
    try:
        print(study(options.out, options.device, options.rounds, options.size, options.tokens))
    except KeyboardInterrupt:
        print(f"\nInterrupted. What was measured is in {options.out}.", file=sys.stderr)
        return INTERRUPTED
    print(f"wrote efficiency_{options.size}.csv, .md and .png into {options.out}")


def _add_superb(commands):
    parser = commands.add_parser("superb", help="run SUPERB's tasks: learning-rate search, five folds, table of results")
    parser.add_argument("checkpoint", help="its path, or the name of an s3prl upstream such as fbank")
    parser.add_argument("--out", type=Path, required=True,
                        help="folder of the runs and the results; the same command goes on with what is there")
    for task, corpus in {"sid": "VoxCeleb1", "er": "IEMOCAP", "ks": "the parent of speech_commands_v0.01"}.items():
        parser.add_argument(f"--{task}", type=Path, metavar="ROOT", help=corpus)
    parser.add_argument("--downstream", nargs=2, action="append", default=[], metavar=("NAME", "CONFIG.yaml"),
                        help="another of s3prl's downstreams, such as fluent_commands; its config names the corpus")
    parser.add_argument("--upstream", metavar="NAME", help="s3prl's entry for the path; default: ssamba_local")
    parser.add_argument("-g", "--upstream-config", metavar="FILE", help="options of the upstream, such as hop_20ms")
    parser.add_argument("--finetune", action="store_true", help="train the upstream as well, with the papers' configs")
    parser.add_argument("--learning-rates", type=float, nargs="+", metavar="RATE",
                        help="searched on dev; default: 1e-2 1e-3 1e-4, with --finetune 1e-4 5e-5 1e-5")
    parser.add_argument("--jobs", type=int, default=1, help="cells run at once, on one GPU after the other; default: 1")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("-o", "--override", default="", help="as s3prl's -o, for all tasks: config.a.b=1,,config.c=2")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--plan", action="store_true", help="print the plan and stop")
    only.add_argument("--cell", type=int, metavar="NUMBER", help="run this cell of the plan only, for job arrays")
    parser.set_defaults(run=_superb)


def _superb(options):
    try:
        return _run_superb(options)
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on.", file=sys.stderr)
        return INTERRUPTED


def _run_superb(options):
    from ..superb import campaign, results
    from ..superb.cells import TASKS, find_upstream, make_cells
    from ..superb.plan import plan

    if options.jobs < 1:
        raise ValueError(f"--jobs {options.jobs}: expected one or more")
    roots = {task: getattr(options, task) for task in TASKS if getattr(options, task)}
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    upstream = find_upstream(options.checkpoint, options.upstream, options.upstream_config)
    cells = make_cells(upstream, roots, options.downstream, options.finetune, options.learning_rates,
                       options.override)
    if options.cell is None:
        print(plan(cells, options.out, device, options.jobs), flush=True)
        if options.plan:
            return 0
        chosen = cells
    elif 0 <= options.cell < len(cells):
        chosen = [cells[options.cell]]
    else:
        raise ValueError(f"--cell {options.cell}: the plan has cells 0 to {len(cells) - 1}")
    campaign.prepare(cells, options.out)
    failures = campaign.run_cells(chosen, options.out, device, options.jobs)
    rows = results.write_results(options.out)
    print(f"\n{results.markdown(rows)}\n\nwrote {options.out}/results.md and results.json")
    for name, reason in failures.items():
        print(f"\n{name} {reason}", file=sys.stderr)
    return 1 if failures else 0


def _add_submit(commands):
    parser = commands.add_parser("submit", help="check s3prl's predictions and zip them for SUPERB's leaderboard")
    for task in submission.PREDICTIONS:
        parser.add_argument(f"--{task.replace('_', '-')}", type=Path, metavar="RUN", help=_RUN_HELP.get(task))
    parser.add_argument("--sid-corpus", type=Path, metavar="PATH", help="VoxCeleb1's split file, or its folder")
    parser.add_argument("--ks-corpus", type=Path, metavar="PATH", help="Speech Commands' test set, or its parent folder")
    parser.add_argument("--er-corpus", type=Path, metavar="PATH", help="the folder of Session1 to Session5")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for predict.zip")
    parser.set_defaults(run=_submit)


_RUN_HELP = {
    "sid": "the folder of s3prl's run of voxceleb1, its best checkpoint evaluated last; or its test_predict.txt",
    "ks": "the same of speech_commands",
    "er_fold1": "the same of emotion with test_fold fold1; all five folds, or no ER",
}


def _submit(options):
    runs = {task: getattr(options, task) for task in submission.PREDICTIONS}
    folds = [runs.pop(fold) for fold in submission.ER_FOLDS]
    print(submission.write_submission(
        options.out, **runs, er_folds=folds,
        sid_corpus=options.sid_corpus, ks_corpus=options.ks_corpus, er_corpus=options.er_corpus,
    ))


def _add_export_hidden_set(commands):
    parser = commands.add_parser("export-hidden-set", help="write the folder that SUPERB's hidden-set track wants")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path, help="a new folder")
    parser.set_defaults(run=_export_hidden_set)


def _export_hidden_set(options):
    hidden_set.export_hidden_set(options.checkpoint, options.out)
    print(f"wrote {options.out}: {', '.join(sorted(path.name for path in options.out.iterdir()))}")


if __name__ == "__main__":
    sys.exit(main())
