"""s3prl's Runner with stored hidden states: the options, and the runner."""

import argparse
import os
import sys
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from ..files import file_hash, write_json
from ..frames import FrameEncoder
from ..store import DTYPES, HiddenStateStore
from .averages import DOWNSTREAMS, AveragedUpstream, sees_averages_only, use_averages
from .kept_states import KeptUpstream, describe
from .repairs.frames import RunError


@dataclass(frozen=True)
class Keeping:
    """Options for keeping a run's hidden states.

    Attributes:
        cache: folder of the store. None: keep nothing.
        cache_limit: maximum size of the store in GB. Default: limited only by the disk.
        cache_dtype: see :class:`ssamba_upstream.store.HiddenStateStore`. Default: float16 for frames, float32 for
            averages.
        averages: If True, keep averages over time instead of frames, and train on them.
        trial: JSON file for the times of a few steps, see :class:`Trial`. Averages are then computed for only a few
            recordings.
    """

    cache: Path | None = None
    cache_limit: float | None = None
    cache_dtype: str | None = None
    averages: bool = False
    trial: Path | None = None

    def dtype_of(self, averages):
        """Return the dtype in which averages or frames are kept."""
        return self.cache_dtype or ("float32" if averages else "float16")

    def arguments(self, kept, default):
        """Return the arguments of ``run-downstream`` that keep hidden states for a cell of ``ssamba superb``.

        For ``kept`` see :class:`ssamba_upstream.superb.cells.Cell`. ``default`` replaces a ``cache`` of None.
        """
        trial = [] if self.trial is None else ["--trial", os.path.abspath(self.trial)]
        if kept is None:
            return trial
        what, dtype = kept.split()
        arguments = ["--cache", os.path.abspath(self.cache or default), "--cache-dtype", dtype]
        arguments += ["--averages"] if what == "averages" else []
        arguments += [] if self.cache_limit is None else ["--cache-limit", str(self.cache_limit)]
        return arguments + trial


@dataclass(frozen=True)
class Trial:
    """Times measured in a trial, in seconds of wall-clock time in the training process.

    Attributes:
        step: seconds for one optimizer step, including everything that belongs to it.
        computing: seconds of the step spent in the upstream, which are saved once the hidden states are kept.
        utterance: seconds to compute the averages of one utterance; 0 without averages.
    """

    step: float
    computing: float
    utterance: float = 0.0


def parse_keeping(arguments):
    """Split the arguments of ``run-downstream`` into (Keeping, all other arguments)."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--cache-limit", type=float)
    parser.add_argument("--cache-dtype", choices=[*DTYPES])
    parser.add_argument("--averages", action="store_true")
    parser.add_argument("--trial", type=Path)
    options, others = parser.parse_known_args(arguments)
    if options.averages and options.cache is None:
        raise SystemExit("--averages needs a folder for the averages. Add --cache FOLDER.")
    return Keeping(**vars(options)), others


def keeping_runner(base, keeping):
    """Return s3prl's Runner class, or a subclass that reads and keeps hidden states."""
    if keeping == Keeping():
        return base

    class KeepingRunner(base):
        def _get_featurizer(self):
            if keeping.cache is not None and self.upstream.trainable:
                print("--cache: nothing is kept, because the upstream is also trained (-f).", file=sys.stderr)
            elif keeping.cache is not None:
                self.upstream.model = _kept(self.upstream.model, self.args, self.config, keeping)
            return super()._get_featurizer()

        def _get_downstream(self):
            entry = super()._get_downstream()
            upstream = self.upstream.model
            if isinstance(upstream, AveragedUpstream) and self.args.mode != "inference":
                use_averages(entry.model, upstream, self.args.device, keeping.trial is not None)
            return entry

        def train(self):
            if keeping.trial is None:
                return super().train()
            ends, computing = [], []

            def note(*_):
                ends.append(time.perf_counter())
                computing.append(getattr(self.upstream.model, "seconds_computing", 0.0))

            self.downstream.model.register_forward_hook(note)
            super().train()
            batches = self.config["runner"]["gradient_accumulate_steps"]
            trial = Trial(
                step=batches * median(later - earlier for earlier, later in pairwise(ends)),
                computing=batches * median(later - earlier for earlier, later in pairwise(computing)),
                utterance=getattr(self.upstream.model, "seconds_per_utterance", 0.0),
            )
            write_json(asdict(trial), keeping.trial)

    return KeepingRunner


def _kept(upstream, args, config, keeping):
    if keeping.averages:
        check_averages(args, config)
    selection = args.upstream_feature_selection
    if isinstance(upstream, FrameEncoder):
        description = upstream.description()
    else:
        files = {"checkpoint": args.upstream_ckpt, "config": args.upstream_model_config}
        description = describe(upstream, args.upstream)
        description |= {name: file_hash(path) for name, path in files.items() if path and Path(path).is_file()}
        print(f"--cache: frames of {args.upstream} may depend on the padding in a batch, so each utterance is computed "
              "separately.", file=sys.stderr)
    description |= {"feature": selection, "time": "average" if keeping.averages else "all"}
    limit = None if keeping.cache_limit is None else round(keeping.cache_limit * 1e9)
    store = HiddenStateStore(keeping.cache, description, keeping.dtype_of(keeping.averages), limit)
    kept = AveragedUpstream if keeping.averages else KeptUpstream
    return kept(upstream, store, selection, args.upstream_layer_selection)


def check_averages(args, config):
    """Raise a RunError if a run with these arguments and config of s3prl cannot use averages."""
    if not sees_averages_only(args.downstream, config):
        raise RunError(f"--averages: the head of -d {args.downstream} uses more of an utterance than its average. "
                       f"Remove --averages; it works for {', '.join(DOWNSTREAMS)} with UtteranceLevel and "
                       "MeanPooling.")
    if args.upstream_feature_normalize:
        raise RunError("--averages: --upstream_feature_normalize normalises each frame before the average. Remove one "
                       "of the two options.")
    if args.local_rank is not None:
        raise RunError("--averages: training on averages uses a single process. Start it without torchrun.")
