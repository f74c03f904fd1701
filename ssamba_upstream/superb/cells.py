"""What ``ssamba superb`` runs: one cell of training and evaluation for every task, fold and learning rate."""

import ast
import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import yaml

from ..checkpoint import content_hash, load_model
from ..configs import find_config
from ..corpora.report import CorpusError
from ..corpora.superb_sets import CORPORA
from ..downloads import find_published
from ..files import json_hash
from ..plugin.hubconf import ENTRIES
from ..plugin.registry import register

FOLDS = tuple(f"fold{number}" for number in range(1, 6))
LEARNING_RATES = {"frozen": (1e-2, 1e-3, 1e-4), "fine-tuned": (1e-4, 5e-5, 1e-5)}


@dataclass(frozen=True)
class SuperbTask:
    """One of SUPERB's tasks: s3prl's downstream, our config's stem, the test folds."""

    downstream: str
    config: str
    folds: tuple = (None,)


TASKS = {
    "sid": SuperbTask("voxceleb1", "speaker_identification"),
    "er": SuperbTask("emotion", "emotion_recognition", FOLDS),
    "ks": SuperbTask("speech_commands", "keyword_spotting"),
}


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
class Cell:
    """One training with its evaluation, and all that decides its result.

    Attributes:
        task: ``sid``, ``er``, ``ks``, or the name of another s3prl downstream.
        downstream: s3prl's name of it.
        mode: ``frozen`` or ``fine-tuned``.
        upstream: see :class:`Upstream`.
        config: s3prl's config with all overrides applied, but for the fold and the learning rate.
        overrides: the user's, as given.
        corpus: how many utterances the check counted, by split or session.
        learning_rate: of the optimizer.
        fold: test fold of ER, ``fold1`` to ``fold5``, else None.
    """

    task: str
    downstream: str
    mode: str
    upstream: Upstream
    config: dict
    overrides: str
    corpus: dict
    learning_rate: float
    fold: str | None = None

    @property
    def name(self) -> str:
        """The name of the cell's folder; it ends in a hash of the whole cell, so that no other has it."""
        digest = _digest(dataclasses.asdict(self))
        return "-".join(filter(None, [self.task, self.mode, self.fold, f"lr{self.learning_rate:g}", digest]))

    @property
    def series(self) -> str:
        """A hash shared by the cells that differ in nothing but learning rate and fold."""
        return _digest(dataclasses.asdict(dataclasses.replace(self, learning_rate=0.0, fold=None)))

    @property
    def steps(self) -> int:
        return self.config["runner"]["total_steps"]

    def s3prl_config(self) -> dict:
        """The config that s3prl reads."""
        config = copy.deepcopy(self.config)
        config["optimizer"]["lr"] = self.learning_rate
        if self.fold:
            config["downstream_expert"]["datarc"]["test_fold"] = self.fold
        return config


def find_upstream(checkpoint, name=None, options=None) -> Upstream:
    """The upstream for a checkpoint's path, or for the name of an entry of s3prl's or ours such as ``fbank``.

    Args:
        checkpoint: path or name; what exists as a path is one.
        name: the entry that reads the path. Default: ``ssamba_local``.
        options: YAML file for the upstream, or the stem of one in upstream_configs.

    Raises:
        CheckpointError: it is no checkpoint of ours, where one is expected.
        ValueError: neither path nor entry.
    """
    options = None if options is None else _read_yaml(options, "upstream")
    path = Path(checkpoint)
    if not path.exists():
        register()
        from s3prl import hub

        if name is not None or not hasattr(hub, str(checkpoint)):
            raise ValueError(f"{checkpoint} is neither a checkpoint's path nor the name of an s3prl upstream "
                             "such as fbank")
        name = str(checkpoint)
        if name not in ENTRIES:
            return Upstream(name, options=options)
        path = find_published(name)
    name = name or "ssamba_local"
    if name in ENTRIES:
        _check_checkpoint(path)
    return Upstream(name, str(path.resolve()), content_hash(path), options)


def _check_checkpoint(path):
    """See that a path holds a checkpoint of ours; raises CheckpointError."""
    load_model(path)


def make_cells(
    upstream, corpora, downstreams=(), fine_tune=False, learning_rates=None, overrides=""
) -> list[Cell]:
    """The cells of the tasks chosen, in a fixed order.

    Args:
        upstream: see :func:`find_upstream`.
        corpora: root folder by task, ``sid``, ``er`` or ``ks``; each is checked.
        downstreams: (s3prl's name, YAML file) of other downstreams, whose configs name their corpora. They
            must write ``dev-best.ckpt`` and ``log.log`` as these three do.
        fine_tune: train the upstream as well; the configs are then the papers' and not SUPERB's.
        learning_rates: to be searched. Default: LEARNING_RATES.
        overrides: for all tasks, in the form of s3prl's ``-o``; only fields of ``config``.

    Raises:
        CorpusError: a corpus has problems; lists them.
        ValueError: nothing to run, or a config or override that cannot work.
    """
    mode = "fine-tuned" if fine_tune else "frozen"
    rates = tuple(dict.fromkeys(learning_rates or LEARNING_RATES[mode]))
    cells = []
    for task, root in corpora.items():
        recipe = TASKS[task]
        report = CORPORA[task].check(root)
        if not report.ok:
            raise CorpusError(str(report))
        config = _read_yaml(f"{recipe.config}_finetune" if fine_tune else recipe.config, "downstream")
        _override(config, report.override)
        _complete(config, overrides, task)
        _check_batch(config, report)
        cells += [Cell(task, recipe.downstream, mode, upstream, config, overrides, report.counts, rate, fold)
                  for fold in recipe.folds for rate in rates]
    for downstream, path in downstreams:
        config = _read_yaml(path, "downstream")
        _complete(config, overrides, downstream)
        cells += [Cell(downstream, downstream, mode, upstream, config, overrides, {}, rate) for rate in rates]
    if not cells:
        raise ValueError("there is nothing to run; give the corpus of one or more of --sid, --er and --ks")
    return cells


def _complete(config, overrides, task):
    """Apply the user's overrides, and keep the state before the last until the last is whole."""
    _override(config, overrides)
    runner = config["runner"]
    runner["max_keep"] = 2
    if runner["eval_step"] > runner["total_steps"] or "dev" not in runner["eval_dataloaders"]:
        raise ValueError(f"{task}: with total_steps {runner['total_steps']}, eval_step {runner['eval_step']} "
                         f"and eval_dataloaders {runner['eval_dataloaders']} nothing is evaluated on dev; "
                         "override config.runner.eval_step")


def _check_batch(config, report):
    """s3prl's keyword spotting drops a batch that is not full, and would wait for ever for another."""
    batch = config["downstream_expert"]["datarc"].get("batch_size", 0)
    utterances = sum(report.counts.get("train", {}).values())
    if 0 < utterances < batch:
        raise CorpusError(f"{report.corpus} in {report.root} has {utterances} utterances for training, less "
                          f"than one batch of {batch}; override config.downstream_expert.datarc.batch_size")


def _override(config, overrides):
    """s3prl's ``-o``: fields separated by ``,,``, their values Python literals or strings."""
    for option in filter(None, map(str.strip, overrides.split(",,"))):
        key, equals, value = (part.strip() for part in option.partition("="))
        first, *parents, last = key.split(".")
        if first != "config" or not equals:
            raise ValueError(f"-o {option}: expected config.<field>=<value>, for only the config may change")
        if key in ("config.optimizer.lr", "config.downstream_expert.datarc.test_fold"):
            raise ValueError(f"-o {option}: learning rates are given with --learning-rates, and all "
                             "folds are run")
        fields = config
        for parent in parents:
            fields = fields.setdefault(parent, {})
        try:
            fields[last] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            fields[last] = value


def _read_yaml(name, kind):
    return yaml.safe_load(find_config(name, kind).read_text(encoding="utf-8"))


def _digest(content) -> str:
    return json_hash(content)[:10]
