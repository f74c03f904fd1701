"""The cells of ``ssamba superb``: one training with evaluation for every task, fold and learning rate or layer."""

import ast
import copy
import dataclasses
import functools
import json
import operator
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml

from ..audio import AUDIO_EXTENSIONS
from ..checkpoint import content_hash, find_checkpoint, load_config, load_model
from ..configs import config_names, find_config
from ..corpora.report import CorpusError, CorpusReport, recordings_of
from ..corpora.superb.sets import CHECKS
from ..extras import installed_version
from ..files import file_hash, json_hash, to_json
from ..plugin.averages import sees_averages_only
from ..plugin.compat import register
from ..plugin.hubconf import ENTRIES
from ..plugin.keeping import Keeping
from ..plugin.overrides import check_field, did_you_mean, fields_of
from .tasks import TASKS, task_named

LARGEST_TEXT = 2**20
"""Largest non-audio file, in bytes, whose content is hashed in a folder that a config names."""

LEARNING_RATES = {"frozen": (1e-2, 1e-3, 1e-4), "fine-tuned": (1e-4, 5e-5, 1e-5)}


@dataclass(frozen=True)
class Upstream:
    """Values of s3prl's ``-u``, ``-k`` and ``-g``, and the SHA-256 of the checkpoint.

    Attributes:
        name: name of an entry in s3prl's hub or in this package.
        checkpoint: absolute path, or None for an entry that needs none.
        sha256: SHA-256 of the checkpoint's files, or None.
        options: content of the YAML file for ``-g``, or None.
    """

    name: str
    checkpoint: str | None = None
    sha256: str | None = None
    options: dict | None = None


@dataclass(frozen=True)
class Corpus:
    """The corpus of a task.

    Attributes:
        content: SHA-256 of what s3prl reads, see :attr:`ssamba_upstream.corpora.report.CorpusReport.content_hash`, and
            of all other files and folders that the config names.
        counts: number of utterances by split or session and by class, from the corpus check.
        released: True if the counts are those of SUPERB's corpus; None for a downstream outside SUPERB.
        override: s3prl's ``-o`` for the corpus's location. Neither it nor the notes count as part of the cell.
        notes: notes from the corpus check.
    """

    content: str
    counts: dict = field(default_factory=dict)
    released: bool | None = None
    override: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Cell:
    """One training with its evaluation, and everything that determines its result.

    Attributes:
        task: a name in ``TASKS``, or another s3prl downstream.
        downstream: s3prl's name for the task.
        mode: ``frozen`` or ``fine-tuned``.
        upstream: see :class:`Upstream`.
        config: s3prl's config with all overrides applied, except the fold and the learning rate.
        overrides: the user's overrides, as given, for which the config has a field.
        corpus: see :class:`Corpus`.
        versions: versions of this package, s3prl and torch, by name.
        learning_rate: the optimizer's learning rate; None for a task without training.
        fold: ER's test fold, ``fold1`` to ``fold5``; None for other tasks.
        layer: index of the hidden state, for a task without training; None for other tasks.
        kept: which hidden states are computed once and kept, and their dtype: "averages float32" or "frames float16",
            see :mod:`ssamba_upstream.plugin.keeping`; None if every step computes them.
    """

    task: str
    downstream: str
    mode: str
    upstream: Upstream
    config: dict
    overrides: str
    corpus: Corpus
    versions: dict
    learning_rate: float | None
    fold: str | None = None
    layer: int | None = None
    kept: str | None = None

    @property
    def name(self) -> str:
        """Name of the cell's folder; it ends in a hash of the whole cell, so it is unique."""
        digest = _digest(self)
        return "-".join(filter(None, [self.task, self.mode, self.fold, self.choice, digest]))

    @property
    def series(self) -> str:
        """Hash shared by all cells that differ only in learning rate, layer or fold."""
        return _digest(dataclasses.replace(self, learning_rate=None, fold=None, layer=None))

    @property
    def choice(self) -> str:
        """Learning rate or layer that distinguishes this cell from the others in a search."""
        return f"layer{self.layer}" if self.learning_rate is None else f"lr{self.learning_rate:g}"

    @property
    def scorer(self) -> str | None:
        """External scoring program, see :class:`ssamba_upstream.superb.tasks.SuperbTask`."""
        return task_named(self.task).scorer

    @property
    def steps(self) -> int:
        return 0 if self.layer is not None else self.config["runner"]["total_steps"]

    def s3prl_config(self) -> dict:
        """Return the config that s3prl reads."""
        config = copy.deepcopy(self.config)
        if self.learning_rate is not None:
            config["optimizer"]["lr"] = self.learning_rate
        if self.fold:
            config["downstream_expert"]["datarc"]["test_fold"] = self.fold
        return config


def find_upstream(checkpoint, name=None, options=None) -> Upstream:
    """Return the upstream for a checkpoint or for an s3prl entry such as ``fbank``.

    Args:
        checkpoint: path or name, see :func:`ssamba_upstream.downloads.find_checkpoint`; or an s3prl entry.
        name: the entry that reads the checkpoint. Default: the checkpoint's own, or ``ssamba_local``.
        options: YAML file for the upstream, or the stem of one in upstream_configs.

    Raises:
        CheckpointError: If the entry is this package's and the checkpoint is not.
        ValueError: If ``checkpoint`` is neither a checkpoint nor an entry.
    """
    options = None if options is None else _read_yaml(options, "upstream")
    if name is None and not os.path.exists(checkpoint) and "/" not in str(checkpoint):
        register()
        from s3prl import hub

        name = str(checkpoint)
        if not hasattr(hub, name):
            raise ValueError(f"{name} is neither a path to a checkpoint nor an s3prl upstream such as fbank")
        if name not in ENTRIES:
            return Upstream(name, options=options)
    name, path = name or "ssamba_local", find_checkpoint(checkpoint)
    if name in ENTRIES:
        load_model(path)  # raises a CheckpointError if it is not one
    return Upstream(name, str(path.resolve()), content_hash(path), options)


def count_layers(upstream: Upstream) -> int:
    """Return an upstream's number of hidden states, from its configuration or by encoding one second of silence."""
    if upstream.name in ENTRIES:
        return load_config(upstream.checkpoint).num_hidden_layers + 1
    from s3prl import hub

    model = getattr(hub, upstream.name)(**({"ckpt": upstream.checkpoint} if upstream.checkpoint else {}))
    with torch.no_grad():
        return len(model.eval()([torch.zeros(16000)])["hidden_states"])


def make_cells(
    upstream, corpora, downstreams=(), fine_tune=False, learning_rates=None, overrides="", keeping=None,
    by_runner=False,
) -> list[Cell]:
    """Return the cells of the chosen tasks, in a fixed order.

    Args:
        upstream: see :func:`find_upstream`.
        corpora: root folder by task, a name in ``TASKS``; each corpus is checked.
        downstreams: (s3prl's name, YAML file) of other downstreams, whose configs name their corpora, see
            :func:`ssamba_upstream.superb.tasks.task_named`.
        fine_tune: If True, train the upstream as well, with the papers' configs instead of SUPERB's.
        learning_rates: learning rates to search. Default: LEARNING_RATES.
        overrides: overrides in the form of s3prl's ``-o``, for fields of ``config`` only. Each applies to all tasks
            whose config has the field.
        keeping: the user's :class:`ssamba_upstream.plugin.keeping.Keeping`. If it names a cache, the frames of frozen
            upstreams are kept there.
        by_runner: If True, train on waveforms, as s3prl's runner does. By default, tasks that use only an utterance's
            average are trained on averages.

    Raises:
        CorpusError: If a corpus has problems; lists them.
        ValueError: If there is nothing to run, or if a config or override cannot work.
    """
    mode = "fine-tuned" if fine_tune else "frozen"
    rates = tuple(dict.fromkeys(learning_rates or LEARNING_RATES[mode]))
    versions, cells, keeping = installed_versions(), [], keeping or Keeping()

    def add(name, task, config, applied, corpus):
        averages = not by_runner and sees_averages_only(task.downstream, config)
        keeps = not fine_tune and (averages or keeping.cache is not None)
        kept = f"{'averages' if averages else 'frames'} {keeping.dtype_of(averages)}" if keeps else None
        cell = Cell(name, task.downstream, mode, upstream, config, applied, corpus, versions, None, kept=kept)
        choices = [{"learning_rate": rate} for rate in rates]
        if task.searched == "layer":
            choices = [{"layer": layer} for layer in range(count_layers(upstream))]
        cells.extend(dataclasses.replace(cell, fold=fold, **choice) for fold in task.folds for choice in choices)

    for name, root in corpora.items():
        task = TASKS[name]
        report = CHECKS[name](root)
        if not report.ok:
            raise CorpusError(str(report))
        config = _read_yaml(_config_name(name, fine_tune), "downstream")
        applied = _complete(config, overrides, name)
        _refuse_places(applied, report)
        if task.drops_incomplete_batches:
            _check_batch(config, report)
        content = json_hash([report.content_hash, _hashes_of_files(config)])
        corpus = Corpus(content, report.counts, report.released, report.override, report.notes)
        _override(config, report.override)
        add(name, task, config, applied, corpus)
    for downstream, path in downstreams:
        config = _read_yaml(path, "downstream")
        applied = _complete(config, overrides, downstream)
        add(downstream, task_named(downstream), config, applied, Corpus(json_hash(_hashes_of_files(config))))
    if not cells:
        raise ValueError("there is nothing to run. Give the corpus of at least one task: "
                         f"{', '.join(f'--{name}' for name in TASKS)}")
    taken = {option for cell in cells for option in _options(cell.overrides)}
    if nowhere := [option for option in _options(overrides) if option not in taken]:
        raise ValueError(f"-o {nowhere[0]}: no task's config has this field."
                         f"{did_you_mean(_field(nowhere[0]), [cell.config for cell in cells])}")
    return cells


def installed_versions() -> dict[str, str]:
    """Return the versions of this package, s3prl and torch, which also affect the results."""
    import s3prl

    ours = installed_version("ssamba-upstream")
    return {"ssamba-upstream": ours, "s3prl": s3prl.__version__, "torch": torch.__version__}


def _hashes_of_files(config) -> dict[str, str]:
    """Return the hashes of all files and folders that a config names by absolute path, by path."""
    paths = [Path(text) for text in sorted(set(_strings(config))) if os.path.isabs(text)]
    return {str(path): file_hash(path) if path.is_file() else _hash_of_folder(path)
            for path in paths if path.is_file() or path.is_dir()}


def _strings(content) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, (dict, list)):
        for item in content.values() if isinstance(content, dict) else content:
            yield from _strings(item)


def _hash_of_folder(folder: Path) -> str:
    files = recordings_of({path.relative_to(folder).as_posix(): path
                           for path in sorted(folder.rglob("*")) if path.is_file()})
    texts = {file.name: file.path for file in files
             if file.size <= LARGEST_TEXT and file.path.suffix.lower() not in AUDIO_EXTENSIONS}
    return CorpusReport("", folder, "", recordings={"": files}, texts=texts).content_hash


def _refuse_places(overrides: str, report):
    """Raise ValueError if an override would make s3prl read files other than those that were checked."""
    places = [option.partition("=")[0] for option in _options(report.override)]
    for option in _options(overrides):
        if option.partition("=")[0].strip() in places:
            raise ValueError(f"-o {option}: this field names a file checked in {report.root}. Put your file, or a link "
                             "to it, there.")


def _config_name(name, fine_tune):
    stem = TASKS[name].config
    if not fine_tune:
        return stem
    if f"{stem}_finetune" not in config_names("downstream"):
        raise ValueError(f"--finetune: there is no config for fine-tuning on {name}. Give one with --downstream "
                         f"{TASKS[name].downstream} CONFIG.yaml, or leave out {name}.")
    return f"{stem}_finetune"


def _complete(config, overrides, name) -> str:
    """Apply the user's overrides for this task and return them; set how many states s3prl keeps."""
    applied = _applicable(config, overrides)
    _override(config, applied)
    _keep_states(config["runner"], task_named(name), name)
    return applied


def _keep_states(runner, task, name):
    """Make s3prl keep the last two states, in case the last is incomplete, or all states if several are evaluated."""
    if task.searched == "layer":
        return
    if task.best is None:
        runner["max_keep"] = runner["total_steps"] // runner["save_step"] + 1
        if runner["eval_step"] > runner["total_steps"] or runner["eval_step"] % runner["save_step"]:
            raise ValueError(f"{name}: with total_steps {runner['total_steps']}, eval_step {runner['eval_step']} and "
                             f"save_step {runner['save_step']}, states are not saved at every eval_step. Override "
                             "config.runner.eval_step or save_step so that eval_step is a multiple of save_step.")
        return
    runner["max_keep"] = 2
    if runner["eval_step"] > runner["total_steps"] or task.dev not in runner["eval_dataloaders"]:
        raise ValueError(f"{name}: with total_steps {runner['total_steps']}, eval_step {runner['eval_step']} "
                         f"and eval_dataloaders {runner['eval_dataloaders']}, nothing is evaluated on {task.dev}. "
                         "Override config.runner.eval_step.")


def _check_batch(config, report):
    """Raise CorpusError if a corpus cannot fill a batch: s3prl's keyword spotting would wait for a full one forever."""
    batch = config["downstream_expert"]["datarc"]["batch_size"]
    utterances = sum(report.counts["train"].values())
    if utterances < batch:
        raise CorpusError(f"{report.corpus} in {report.root} has {utterances} training utterances, fewer than one "
                          f"batch of {batch}. Override config.downstream_expert.datarc.batch_size.")


def _applicable(config, overrides) -> str:
    """Return the user's overrides for a task: in sections that differ by task, only fields that its config has."""
    own_only, fields = ("downstream_expert", "specaug", "specaug_hop", "upstream_config"), fields_of(config)
    return ",,".join(option for option in _options(overrides)
                     if _field(option) in fields or _field(option).split(".")[0] not in own_only)


def _field(option) -> str:
    return option.partition("=")[0].strip().removeprefix("config.")


def _options(overrides) -> list[str]:
    return [option.strip() for option in overrides.split(",,") if option.strip()]


def _override(config, overrides):
    """Apply overrides in the form of s3prl's ``-o``: separated by ``,,``, values being Python literals or strings."""
    for option in _options(overrides):
        key, equals, value = (part.strip() for part in option.partition("="))
        first, *parents, last = key.split(".")
        if first != "config" or not equals:
            raise ValueError(f"-o {option}: only the config can be overridden. Write config.<field>=<value>.")
        if key in ("config.optimizer.lr", "config.downstream_expert.datarc.test_fold"):
            raise ValueError(f"-o {option}: this field cannot be overridden. Give learning rates with "
                             "--learning-rates; all folds are always run.")
        check_field(config, _field(option))
        fields = config
        for parent in parents:
            fields = fields.setdefault(parent, {})
        try:
            fields[last] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            fields[last] = value


def _read_yaml(name, kind):
    return yaml.safe_load(find_config(name, kind).read_text(encoding="utf-8"))


def _digest(cell: Cell) -> str:
    """Hash everything that determines a cell's result, which excludes the location of its corpus."""
    content = dataclasses.asdict(cell)
    for option in _options(cell.corpus.override):
        *parents, last = option.partition("=")[0].split(".")[1:]
        del functools.reduce(operator.getitem, parents, content["config"])[last]
    del content["corpus"]["override"], content["corpus"]["notes"]
    return json_hash(json.loads(to_json(content)))[:10]  # as JSON, so that a cell read from cell.json has the same hash
