"""What ``ssamba superb`` runs: one cell of training and evaluation for every task, fold and learning rate or layer."""

import ast
import copy
import dataclasses
import functools
import importlib.metadata
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
from ..files import file_hash, json_hash, to_json
from ..plugin.averages import sees_averages_only
from ..plugin.hubconf import ENTRIES
from ..plugin.keeping import Keeping
from ..plugin.overrides import check_field, did_you_mean, fields_of
from ..plugin.registry import register
from .tasks import TASKS, SuperbTask, task_named

LARGEST_TEXT = 2**20
"""Bytes of a file in a folder that a config names, up to which its content counts, unless it is audio."""

LEARNING_RATES = {"frozen": (1e-2, 1e-3, 1e-4), "fine-tuned": (1e-4, 5e-5, 1e-5)}


@dataclass(frozen=True)
class Upstream:
    """What s3prl is given with ``-u``, ``-k`` and ``-g``, and the SHA-256 of the checkpoint.

    Attributes:
        name: an entry of s3prl's hub or of ours.
        checkpoint: absolute path, or None for an entry that needs none.
        sha256: of the checkpoint's files, or None.
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
            of the files and folders that the config names otherwise.
        counts: utterances by split or session and, in it, by class, as the check counted them.
        released: True if it is SUPERB's by these counts; None for a downstream that is none of SUPERB's tasks.
        override: s3prl's ``-o`` that says where it lies. It does not count as a part of the cell, nor do the notes.
        notes: of the check.
    """

    content: str
    counts: dict = field(default_factory=dict)
    released: bool | None = None
    override: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Cell:
    """One training with its evaluation, and all that decides its result.

    Attributes:
        task: a name of ``TASKS``, or of another s3prl downstream.
        downstream: s3prl's name of it.
        mode: ``frozen`` or ``fine-tuned``.
        upstream: see :class:`Upstream`.
        config: s3prl's config with all overrides applied, but for the fold and the learning rate.
        overrides: the user's, as given, those that the config has a field for.
        corpus: see :class:`Corpus`.
        versions: of this package, s3prl and torch, by name.
        learning_rate: of the optimizer; None without training.
        fold: test fold of ER, ``fold1`` to ``fold5``, else None.
        layer: number of the hidden state, of a task without training, else None.
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
        """The name of the cell's folder; it ends in a hash of the whole cell, so that no other has it."""
        digest = _digest(self)
        return "-".join(filter(None, [self.task, self.mode, self.fold, self.choice, digest]))

    @property
    def series(self) -> str:
        """A hash shared by the cells that differ in nothing but learning rate, layer and fold."""
        return _digest(dataclasses.replace(self, learning_rate=None, fold=None, layer=None))

    @property
    def choice(self) -> str:
        """What distinguishes the cell from the others of a search."""
        return f"layer{self.layer}" if self.learning_rate is None else f"lr{self.learning_rate:g}"

    @property
    def scorer(self) -> str | None:
        """The program that measures beside s3prl, see :class:`ssamba_upstream.superb.tasks.SuperbTask`."""
        return task_named(self.task).scorer

    @property
    def steps(self) -> int:
        return 0 if self.layer is not None else self.config["runner"]["total_steps"]

    def s3prl_config(self) -> dict:
        """The config that s3prl reads."""
        config = copy.deepcopy(self.config)
        if self.learning_rate is not None:
            config["optimizer"]["lr"] = self.learning_rate
        if self.fold:
            config["downstream_expert"]["datarc"]["test_fold"] = self.fold
        return config


def find_upstream(checkpoint, name=None, options=None) -> Upstream:
    """The upstream for a checkpoint, or for the name of an entry of s3prl's such as ``fbank``.

    Args:
        checkpoint: path or name, see :func:`ssamba_upstream.downloads.find_checkpoint`; or an entry of s3prl's.
        name: the entry that reads the checkpoint. Default: its own, or ``ssamba_local``.
        options: YAML file for the upstream, or the stem of one in upstream_configs.

    Raises:
        CheckpointError: it is no checkpoint of ours, where one is expected.
        ValueError: neither a checkpoint nor an entry.
    """
    options = None if options is None else _read_yaml(options, "upstream")
    if name is None and not os.path.exists(checkpoint) and "/" not in str(checkpoint):
        register()
        from s3prl import hub

        name = str(checkpoint)
        if not hasattr(hub, name):
            raise ValueError(f"{name} is neither a checkpoint's path nor the name of an s3prl upstream such as fbank")
        if name not in ENTRIES:
            return Upstream(name, options=options)
    name, path = name or "ssamba_local", find_checkpoint(checkpoint)
    if name in ENTRIES:
        _check_checkpoint(path)
    return Upstream(name, str(path.resolve()), content_hash(path), options)


def _check_checkpoint(path):
    """See that a path holds a checkpoint of ours; raises CheckpointError."""
    load_model(path)


def count_layers(upstream: Upstream) -> int:
    """Number of an upstream's hidden states: of ours by its configuration, else by trying one second of silence."""
    if upstream.name in ENTRIES:
        return load_config(upstream.checkpoint).num_hidden_layers + 1
    import torch
    from s3prl import hub

    model = getattr(hub, upstream.name)(**({"ckpt": upstream.checkpoint} if upstream.checkpoint else {}))
    with torch.no_grad():
        return len(model.eval()([torch.zeros(16000)])["hidden_states"])


def make_cells(
    upstream, corpora, downstreams=(), fine_tune=False, learning_rates=None, overrides="", keeping=None,
    by_runner=False,
) -> list[Cell]:
    """The cells of the tasks chosen, in a fixed order.

    Args:
        upstream: see :func:`find_upstream`.
        corpora: root folder by task, a name of ``TASKS``; each is checked.
        downstreams: (s3prl's name, YAML file) of other downstreams, whose configs name their corpora, see
            :func:`ssamba_upstream.superb.tasks.task_named`.
        fine_tune: train the upstream as well; the configs are then the papers' and not SUPERB's.
        learning_rates: to be searched. Default: LEARNING_RATES.
        overrides: in the form of s3prl's ``-o``; only fields of ``config``, for all tasks whose config has the field.
        keeping: the user's :class:`ssamba_upstream.plugin.keeping.Keeping`. If it names a cache, the frames of frozen
            upstreams are kept there.
        by_runner: train on waveforms, as s3prl's runner does. Default: tasks that see nothing of an utterance but its
            average are trained on averages.

    Raises:
        CorpusError: a corpus has problems; lists them.
        ValueError: nothing to run, or a config or override that cannot work.
    """
    mode = "fine-tuned" if fine_tune else "frozen"
    rates = tuple(dict.fromkeys(learning_rates or LEARNING_RATES[mode]))
    versions, cells = installed_versions(), []
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
        kept = _kept(task.downstream, config, mode, keeping or Keeping(), by_runner)
        cell = Cell(name, task.downstream, mode, upstream, config, applied, corpus, versions, None, kept=kept)
        cells += [dataclasses.replace(cell, fold=fold, **choice)
                  for fold in task.folds for choice in _choices(task, rates, upstream)]
    for downstream, path in downstreams:
        config = _read_yaml(path, "downstream")
        applied = _complete(config, overrides, downstream)
        corpus = Corpus(json_hash(_hashes_of_files(config)))
        kept = _kept(downstream, config, mode, keeping or Keeping(), by_runner)
        cells += [Cell(downstream, downstream, mode, upstream, config, applied, corpus, versions, rate, kept=kept)
                  for rate in rates]
    if not cells:
        raise ValueError("there is nothing to run; give the corpus of one or more of "
                         f"{', '.join(f'--{name}' for name in TASKS)}")
    taken = {option for cell in cells for option in _options(cell.overrides)}
    if nowhere := [option for option in _options(overrides) if option not in taken]:
        raise ValueError(f"-o {nowhere[0]}: none of the tasks has this field in its config."
                         f"{did_you_mean(_field(nowhere[0]), [cell.config for cell in cells])}")
    return cells


def _kept(downstream, config, mode, keeping, by_runner):
    averages = not by_runner and sees_averages_only(downstream, config)
    if mode == "fine-tuned" or not averages and keeping.cache is None:
        return None
    return f"{'averages' if averages else 'frames'} {keeping.dtype_of(averages)}"


def installed_versions() -> dict[str, str]:
    """The versions of this package, s3prl and torch, which decide the results, too."""
    import s3prl

    try:
        ours = importlib.metadata.version("ssamba-upstream")
    except importlib.metadata.PackageNotFoundError:
        ours = "not installed"
    return {"ssamba-upstream": ours, "s3prl": s3prl.__version__, "torch": torch.__version__}


def _hashes_of_files(config) -> dict[str, str]:
    """Hashes of the files and folders that a config names by absolute paths, by path."""
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
    """What was checked has to be what s3prl reads."""
    places = [option.partition("=")[0] for option in _options(report.override)]
    for option in _options(overrides):
        if option.partition("=")[0].strip() in places:
            raise ValueError(f"-o {option}: this field names what was checked in {report.root}. Put the file there, or "
                             "a link to it.")


def _config_name(name, fine_tune):
    stem = TASKS[name].config
    if not fine_tune:
        return stem
    if f"{stem}_finetune" not in config_names("downstream"):
        raise ValueError(f"--finetune: there is no config for fine-tuning on {name}; give it with --downstream "
                         f"{TASKS[name].downstream} CONFIG.yaml, or leave {name} out")
    return f"{stem}_finetune"


def _choices(task: SuperbTask, rates, upstream) -> list[dict]:
    """What is searched, as fields of a cell."""
    if task.searched == "layer":
        return [{"layer": layer} for layer in range(count_layers(upstream))]
    return [{"learning_rate": rate} for rate in rates]


def _complete(config, overrides, name) -> str:
    """Apply the user's overrides that are for this task and return them; keep the states that a campaign needs."""
    applied = _applicable(config, overrides)
    _override(config, applied)
    _keep_states(config["runner"], task_named(name), name)
    return applied


def _keep_states(runner, task, name):
    """Keep the state before the last until the last is whole, or all states where several are evaluated."""
    if task.searched == "layer":
        return
    if task.best is None:
        runner["max_keep"] = runner["total_steps"] // runner["save_step"] + 1
        if runner["eval_step"] > runner["total_steps"] or runner["eval_step"] % runner["save_step"]:
            raise ValueError(f"{name}: with total_steps {runner['total_steps']}, eval_step {runner['eval_step']} and "
                             f"save_step {runner['save_step']} no state is kept to be evaluated at every eval_step. "
                             "Override config.runner.eval_step or save_step, so that the first is a multiple of the "
                             "second")
        return
    runner["max_keep"] = 2
    if runner["eval_step"] > runner["total_steps"] or task.dev not in runner["eval_dataloaders"]:
        raise ValueError(f"{name}: with total_steps {runner['total_steps']}, eval_step {runner['eval_step']} "
                         f"and eval_dataloaders {runner['eval_dataloaders']} nothing is evaluated on {task.dev}; "
                         "override config.runner.eval_step")


def _check_batch(config, report):
    """s3prl's keyword spotting drops a batch that is not full, and would wait for ever for another."""
    batch = config["downstream_expert"]["datarc"]["batch_size"]
    utterances = sum(report.counts["train"].values())
    if utterances < batch:
        raise CorpusError(f"{report.corpus} in {report.root} has {utterances} utterances for training, less "
                          f"than one batch of {batch}; override config.downstream_expert.datarc.batch_size")


def _applicable(config, overrides) -> str:
    """Those of the user's overrides that are for a task: in the sections that differ by task, fields of its config."""
    own_only, fields = ("downstream_expert", "specaug", "specaug_hop", "upstream_config"), fields_of(config)
    return ",,".join(option for option in _options(overrides)
                     if _field(option) in fields or _field(option).split(".")[0] not in own_only)


def _field(option) -> str:
    return option.partition("=")[0].strip().removeprefix("config.")


def _options(overrides) -> list[str]:
    return [option.strip() for option in overrides.split(",,") if option.strip()]


def _override(config, overrides):
    """s3prl's ``-o``: fields separated by ``,,``, their values Python literals or strings."""
    for option in _options(overrides):
        key, equals, value = (part.strip() for part in option.partition("="))
        first, *parents, last = key.split(".")
        if first != "config" or not equals:
            raise ValueError(f"-o {option}: expected config.<field>=<value>, for only the config may change")
        if key in ("config.optimizer.lr", "config.downstream_expert.datarc.test_fold"):
            raise ValueError(f"-o {option}: learning rates are given with --learning-rates, and all "
                             "folds are run")
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
    """A hash of all that decides a cell's result, so not of the place where its corpus lies."""
    content = dataclasses.asdict(cell)
    for option in _options(cell.corpus.override):
        *parents, last = option.partition("=")[0].split(".")[1:]
        del functools.reduce(operator.getitem, parents, content["config"])[last]
    del content["corpus"]["override"], content["corpus"]["notes"]
    return json_hash(json.loads(to_json(content)))[:10]  # of what cell.json can hold, so that its reader finds the same
