"""``ssamba bench``."""

import sys
from pathlib import Path

from .options import INTERRUPTED, SIZES, add_out, counted


def add_commands(commands):
    bench = commands.add_parser("bench", help="measure the scan's backends and peers, the network, its pretraining, or "
                                              "its efficiency compared with SSAST")
    subjects = bench.add_subparsers(dest="subject", metavar="SUBJECT", required=True)
    scan = subjects.add_parser("scan", help="measure every backend of the scan, and its peers")
    model = subjects.add_parser("model", help="measure the network and its parts, on the upstream's windows")
    pretraining = subjects.add_parser("pretraining", help="measure the passes of pretraining and their input")
    efficiency = subjects.add_parser("efficiency", help="compare SSAMBA with SSAST over the number of tokens; takes an "
                                                        "hour")
    for subject in (model, pretraining):
        subject.add_argument("--size", choices=SIZES, action="append", help="size of the network; default: all")
    efficiency.add_argument("--size", choices=SIZES, default="tiny", help="size of both networks; default: tiny")
    efficiency.add_argument("--tokens", type=int, nargs="+", metavar="N",
                            help="numbers of tokens, multiples of 8; default: ten numbers from 128 to 65536")
    for subject in (scan, model, pretraining, efficiency):
        subject.add_argument("--rounds", type=int, default=5, help="rounds of measurements; default: 5")
        subject.add_argument("--device", choices=("cpu", "cuda"), default="cpu",
                             help="device to compute on; default: cpu")
        add_out(subject, "folder for the results", default=Path("result/bench"))
    for subject in (scan, model, pretraining):
        subject.set_defaults(run=_bench)
    efficiency.set_defaults(run=_bench_efficiency)


def _bench(options):
    import torch

    from ..benchmark.model import bench_model
    from ..benchmark.pretraining import bench_pretraining
    from ..benchmark.scan import bench_scan
    from ..benchmark.timing import write_table

    measured = options.device, options.rounds
    if options.subject == "scan":
        rows = bench_scan(*measured)
    else:
        bench = bench_model if options.subject == "model" else bench_pretraining
        rows = bench(*measured, options.size or SIZES)
    path = options.out / f"{options.subject}.csv"
    print(write_table(rows, path))
    print(f"\n{options.rounds} rounds, medians, {counted(torch.get_num_threads(), 'thread')}; wrote {path}")


def _bench_efficiency(options):
    from ..benchmark.efficiency import TOKENS, write_study

    try:
        print(write_study(options.out, options.device, options.rounds, options.size, options.tokens or TOKENS))
    except KeyboardInterrupt:
        print(f"\nInterrupted. The results so far are in {options.out}.", file=sys.stderr)
        return INTERRUPTED
    print(f"wrote efficiency_{options.size}.csv, .md and .png into {options.out}")
