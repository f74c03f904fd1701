"""``ssamba run-downstream``, ``s3prl``, ``superb``, ``submit`` and ``export-hidden-set``."""

import sys
from pathlib import Path

from .options import INTERRUPTED, add_device, add_out, add_upstream_config

RUN_HELP = {
    "sid": "the folder of s3prl's run of voxceleb1, its best checkpoint evaluated last; or its test_predict.txt",
    "ks": "the same of speech_commands",
    "er-fold1": "the same of emotion with test_fold fold1; all five folds, or no ER",
    **dict.fromkeys(f"er-fold{fold}" for fold in range(2, 6)),
}


def add_commands(commands):
    commands.add_parser("run-downstream", help="s3prl's run_downstream with the SSAMBA upstreams; takes its arguments")
    commands.add_parser("s3prl", help="s3prl's newer recipes (SuperbSID, SuperbASR, ...) with the SSAMBA upstreams; "
                                      "takes s3prl.main's arguments")

    superb = commands.add_parser("superb",
                                 help="run SUPERB's tasks: learning-rate search, five folds, table of results")
    superb.add_argument("checkpoint", help="its path, or the name of an s3prl upstream such as fbank")
    add_out(superb, "folder of the runs and the results; the same command goes on with what is there")
    for task, corpus in {"sid": "VoxCeleb1", "er": "IEMOCAP", "ks": "the parent of speech_commands_v0.01"}.items():
        superb.add_argument(f"--{task}", type=Path, metavar="ROOT", help=corpus)
    superb.add_argument("--downstream", nargs=2, action="append", default=[], metavar=("NAME", "CONFIG.yaml"),
                        help="another of s3prl's downstreams, such as fluent_commands; its config names the corpus")
    superb.add_argument("--upstream", metavar="NAME", help="s3prl's entry for the path; default: ssamba_local")
    add_upstream_config(superb)
    superb.add_argument("--finetune", action="store_true", help="train the upstream as well, with the papers' configs")
    superb.add_argument("--learning-rates", type=float, nargs="+", metavar="RATE",
                        help="searched on dev; default: 1e-2 1e-3 1e-4, with --finetune 1e-4 5e-5 1e-5")
    superb.add_argument("--jobs", type=int, default=1, help="cells run at once, on one GPU after the other; default: 1")
    add_device(superb)
    superb.add_argument("-o", "--override", default="",
                        help="as s3prl's -o, for all tasks: config.a.b=1,,config.c=2")
    only = superb.add_mutually_exclusive_group()
    only.add_argument("--plan", action="store_true", help="print the plan and stop")
    only.add_argument("--cell", type=int, metavar="NUMBER", help="run this cell of the plan only, for job arrays")
    superb.set_defaults(run=_superb)

    submit = commands.add_parser("submit", help="check s3prl's predictions and zip them for SUPERB's leaderboard")
    for task, what in RUN_HELP.items():
        submit.add_argument(f"--{task}", type=Path, metavar="RUN", help=what)
    submit.add_argument("--sid-corpus", type=Path, metavar="PATH", help="VoxCeleb1's split file, or its folder")
    submit.add_argument("--ks-corpus", type=Path, metavar="PATH",
                        help="Speech Commands' test set, or its parent folder")
    submit.add_argument("--er-corpus", type=Path, metavar="PATH", help="the folder of Session1 to Session5")
    add_out(submit, "folder for predict.zip")
    submit.set_defaults(run=_submit, needs_network=False)

    export = commands.add_parser("export-hidden-set", help="write the folder that SUPERB's hidden-set track wants")
    export.add_argument("checkpoint", type=Path)
    add_out(export, "a new folder")
    export.set_defaults(run=_export_hidden_set)


def run_downstream(arguments):
    """s3prl's own command, with its arguments as they are."""
    from .. import auto_classes  # noqa: F401  (which makes torchaudio importable, too)
    from ..plugin.runner import main

    return main(arguments)


def run_s3prl(arguments):
    """s3prl's recipes, with their arguments as they are."""
    from .. import auto_classes  # noqa: F401  (which makes torchaudio importable, too)
    from ..plugin.runner import run_s3prl_main

    return run_s3prl_main(arguments)


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
    from ..training.distributed import choose_device

    if options.jobs < 1:
        raise ValueError(f"--jobs {options.jobs}: expected one or more")
    roots = {task: getattr(options, task) for task in TASKS if getattr(options, task)}
    device = choose_device(options.device)
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


def _submit(options):
    from ..superb.submission import write_submission

    print(write_submission(
        options.out, sid=options.sid, ks=options.ks,
        er_folds=[getattr(options, f"er_fold{fold}") for fold in range(1, 6)],
        sid_corpus=options.sid_corpus, ks_corpus=options.ks_corpus, er_corpus=options.er_corpus,
    ))


def _export_hidden_set(options):
    from ..superb.hidden_set import export_hidden_set

    export_hidden_set(options.checkpoint, options.out)
    print(f"wrote {options.out}: {', '.join(sorted(path.name for path in options.out.iterdir()))}")
