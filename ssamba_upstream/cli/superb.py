"""``ssamba run-downstream``, ``s3prl``, ``superb``, ``submit`` and ``export-hidden-set``."""

import signal
import sys
from pathlib import Path

from .options import (
    CHECKPOINT,
    INTERRUPTED,
    SUPERB_CORPORA,
    add_cache,
    add_checkpoint,
    add_device,
    add_out,
    add_upstream_config,
)

RUN_HELP = {
    "pr": "run folder of ctc on phones, or its test-hyp.ark; evaluate the best checkpoint last",
    "asr": "run folder of asr, or its test-clean-noLM-hyp.ark; evaluate with -t test-clean",
    "asr-lm": "run folder of asr, or its test-clean-LM-hyp.ark; evaluate with the language model",
    "sf": "run folder of ctc on slots, or its test-hyp.ark; evaluate the best checkpoint last",
    "ic": "run folder of fluent_commands, or its test_predict.csv; evaluate the best checkpoint last",
    "sid": "run folder of voxceleb1, or its test_predict.txt; evaluate the best checkpoint last",
    "asv": "run folder of sv_voxceleb1, or its test_predict.txt; evaluate the best checkpoint on test",
    "sd": "run folder of diarization, with scoring/predictions and frame_shift",
    "qbe": "run folder of quesst14_dtw's best layer, or its benchmark.stdlist.xml; evaluate with -t test",
    "se": "run folder of enhancement_stft, or its test_metrics.txt; evaluate the best checkpoint last",
    "ss": "run folder of separation_stft, or its test_metrics.txt; evaluate the best checkpoint last",
    "ks": "run folder of speech_commands, or its test_predict.txt; evaluate the best checkpoint last",
    **{f"er-fold{fold}": f"run folder of emotion with test_fold fold{fold}; ER needs all five folds"
       for fold in range(1, 6)},
}

CORPUS_HELP = {
    "pr": "LibriSpeech", "asr": "LibriSpeech", "sf": "Audio SNIPS", "ic": "Fluent Speech Commands",
    "sid": "VoxCeleb1's split file, or its folder", "asv": "VoxCeleb1's list of trials, or its folder",
    "sd": "the mixtures in Kaldi's format, or the folder of their test set", "qbe": "quesst14Database",
    "ks": "Speech Commands' test set, or its parent folder", "er": "folder that contains Session1 to Session5",
}


def add_commands(commands):
    commands.add_parser("run-downstream", help="s3prl's run_downstream with the SSAMBA upstreams; takes its arguments")
    commands.add_parser("s3prl", help="s3prl's newer recipes (SuperbSID, SuperbASR, ...) with the SSAMBA upstreams; "
                                      "takes s3prl.main's arguments")

    superb = commands.add_parser("superb",
                                 help="run any of SUPERB's tasks: search on dev, five folds, table of results")
    add_checkpoint(superb, help=f"{CHECKPOINT}; or the name of an s3prl upstream such as fbank")
    add_out(superb, "folder for runs and results; run the same command again to continue")
    for task, corpus in SUPERB_CORPORA.items():
        superb.add_argument(f"--{task}", type=Path, metavar="ROOT", help=f"folder of {corpus}")
    superb.add_argument("--downstream", nargs=2, action="append", default=[], metavar=("NAME", "CONFIG.yaml"),
                        help="another of s3prl's downstreams, such as fluent_commands; its config names the corpus")
    superb.add_argument("--upstream", metavar="NAME", help="s3prl entry for the checkpoint; default: ssamba_local")
    add_upstream_config(superb)
    superb.add_argument("--finetune", action="store_true", help="train the upstream as well, with the papers' configs")
    superb.add_argument("--learning-rates", type=float, nargs="+", metavar="RATE",
                        help="learning rates to search on dev; default: 1e-2 1e-3 1e-4, with --finetune 1e-4 5e-5 1e-5")
    superb.add_argument("--by-runner", action="store_true",
                        help="train SID, ER, KS and IC on waveforms, as s3prl does, instead of on averages over time")
    add_cache(superb)
    superb.add_argument("--jobs", type=int, default=1, help="cells to run at once, on each GPU in turn; default: 1")
    add_device(superb)
    superb.add_argument("--dscore", type=Path, metavar="FOLDER",
                        help="clone of https://github.com/ftshijt/dscore, which measures the DER of --sd")
    superb.add_argument("--language-model", type=Path, nargs=2, metavar=("KENLM", "LEXICON"),
                        help="LibriSpeech's 4-gram and the lexicon of letters, for the second WER of --asr")
    superb.add_argument("-o", "--override", default="",
                        help="s3prl's -o for all tasks, such as config.a.b=1,,config.c=2")
    only = superb.add_mutually_exclusive_group()
    only.add_argument("--plan", action="store_true", help="print the plan and stop")
    only.add_argument("--cell", type=int, metavar="NUMBER", help="run only this cell of the plan, for job arrays")
    superb.set_defaults(run=_superb)

    submit = commands.add_parser("submit", help="check s3prl's predictions and zip them for SUPERB's leaderboard")
    for task, what in RUN_HELP.items():
        submit.add_argument(f"--{task}", type=Path, metavar="RUN", help=what)
    for task, what in CORPUS_HELP.items():
        submit.add_argument(f"--{task}-corpus", type=Path, metavar="PATH", help=f"test set of {task}: {what}")
    add_out(submit, "folder for predict.zip")
    submit.set_defaults(run=_submit, needs_network=False)

    export = commands.add_parser("export-hidden-set", help="write the folder required by SUPERB's hidden-set track")
    add_checkpoint(export)
    add_upstream_config(export)
    add_out(export, "a new folder")
    export.set_defaults(run=_export_hidden_set)


def run_s3prl(command, arguments):
    """Run s3prl's runner ("run-downstream") or recipes ("s3prl") with their own arguments."""
    from .. import auto_classes  # noqa: F401  (also makes torchaudio importable)
    from ..plugin.runner import main, run_s3prl_main

    return (main if command == "run-downstream" else run_s3prl_main)(arguments, f"ssamba {command}")


def _superb(options):
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # sent by batch systems, treated as Ctrl-C
    try:
        return _run_superb(options)
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command again to continue.", file=sys.stderr)
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)


def _run_superb(options):
    from ..plugin.keeping import Keeping
    from ..superb import campaign, results
    from ..superb.cells import find_upstream, make_cells
    from ..superb.plan import plan
    from ..superb.scorers import Scorers
    from ..training.distributed import choose_device

    if options.jobs < 1:
        raise ValueError(f"--jobs is {options.jobs}. Set it to 1 or more")
    roots = {task: getattr(options, task) for task in SUPERB_CORPORA if getattr(options, task)}
    scorers = Scorers(options.dscore, options.language_model and tuple(options.language_model))
    device = choose_device(options.device)
    upstream = find_upstream(options.checkpoint, options.upstream, options.upstream_config)
    keeping = Keeping(options.cache, options.cache_limit, options.cache_dtype)
    cells = make_cells(upstream, roots, options.downstream, options.finetune, options.learning_rates,
                       options.override, keeping, options.by_runner)
    _, earlier = campaign.read_cells(options.out)
    if earlier:  # also reported before hours of training
        print(results.note_on_earlier(earlier), file=sys.stderr, flush=True)
    if options.cell is None:
        print(plan(cells, options.out, device, options.jobs, scorers, compare=options.plan), flush=True)
        if options.plan:
            return 0
        chosen = cells
    elif 0 <= options.cell < len(cells):
        chosen = [cells[options.cell]]
    else:
        raise ValueError(f"--cell {options.cell} is not in the plan. Give a number from 0 to {len(cells) - 1}")
    campaign.prepare(cells, options.out)
    failures = campaign.run_cells(chosen, options.out, device, options.jobs, scorers, keeping)
    rows = results.write_results(options.out, scorers)
    print(f"\n{results.markdown(rows)}\n\nwrote {options.out}/results.md and results.json")
    for name, reason in failures.items():
        print(f"\n{name} {reason}", file=sys.stderr)
    return 1 if failures or earlier else 0


def _submit(options):
    from ..superb.predictions import corpus_option
    from ..superb.submission import write_submission

    given = {name.replace("-", "_"): getattr(options, name.replace("-", "_")) for name in RUN_HELP}
    runs = {name: run for name, run in given.items() if run is not None}
    corpora = {name: getattr(options, corpus_option(name)[2:].replace("-", "_"), None) for name in runs}
    print(write_submission(options.out, runs, corpora))


def _export_hidden_set(options):
    from ..frames import UpstreamOptions
    from ..superb.hidden_set import export_hidden_set

    export_hidden_set(options.checkpoint, options.out, UpstreamOptions.read(options.upstream_config))
    print(f"wrote {options.out}: {', '.join(sorted(path.name for path in options.out.iterdir()))}")
