"""Imports between the package's layers run downwards, without cycles."""

import ast
import graphlib

import pytest

from helpers.paths import CHECKOUT

PACKAGE = CHECKOUT / "ssamba_upstream"

FLOORS = [
    {"torchaudio_extension", "devices", "files", "configs", "packing", "extras", "ops", "audio", "reading"},
    {"figures", "frontend", "network", "downloads"},
    {"feature_extraction", "windows", "checkpoint", "corpora", "store", "streaming"},
    {"auto_classes", "frames", "training", "benchmark"},
    {"deployment", "extraction", "hear", "probing"},
    {"pretraining", "finetuning"},
    {"plugin"},
    {"superb"},
    {"__init__"},
    {"cli"},
    {"__main__"},
]
"""From the bottom up. A folder or module may import from its own layer and those below, without cycles."""


def modules():
    """Yield the path and dotted name of every module; ``__init__`` has the name of its folder."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield path, ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


NAMES = {name for _, name in modules()}


def imported(path):
    """Yield the dotted names of the package's modules that a module imports anywhere in its code."""
    package = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            origins = [alias.name.split(".") for alias in node.names if alias.name.split(".")[0] == PACKAGE.name]
            yield from (".".join(origin[1:]) or "__init__" for origin in origins)
        elif isinstance(node, ast.ImportFrom) and (node.level or node.module.split(".")[0] == PACKAGE.name):
            module = node.module.split(".") if node.module else []
            origin = [*package[:len(package) - node.level + 1], *module] if node.level else module[1:]
            for alias in node.names:
                member = ".".join([*origin, alias.name])
                yield member if member in NAMES else ".".join(origin) or "__init__"


IMPORTS = {name: set(imported(path)) for path, name in modules()}


def floor_of(name):
    (floor,) = [number for number, rooms in enumerate(FLOORS) if name.split(".")[0] in rooms]
    return floor


def test_imports_run_downwards():
    pairs = [(name, found) for name, others in IMPORTS.items() for found in others]
    assert not [pair for pair in pairs if floor_of(pair[1]) > floor_of(pair[0])]


def test_rooms_import_each_other_in_no_circle():
    rooms = {}
    for name, others in IMPORTS.items():
        room = name.split(".")[0]
        rooms.setdefault(room, set()).update({other.split(".")[0] for other in others} - {room})
    graphlib.TopologicalSorter(rooms).prepare()


def test_modules_import_each_other_in_no_circle():
    graphlib.TopologicalSorter({name: others - {name} for name, others in IMPORTS.items()}).prepare()


def test_s3prl_is_known_to_the_plugin_and_to_superb_only():
    """Importing the package imports no s3prl: only the root's ``register`` calls the plugin."""
    for path, name in modules():
        nodes = [*ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
        knows = any(found.split(".")[0] == "s3prl" for found in names) or any(
            floor_of(other) >= floor_of("plugin") for other in IMPORTS[name])
        assert not knows or floor_of(name) >= floor_of("plugin"), name


@pytest.mark.parametrize("entry", [
    "checkpoint.load_config", "checkpoint.load_model", "checkpoint.save_model", "corpora.labelled.read_labelled",
    "deployment.onnx_export.export", "deployment.recordings.classify", "downloads.find_checkpoint",
    "extraction.extract", "finetuning.trainer.finetune", "pretraining.trainer.pretrain", "probing.study.probe",
])
def test_public_entry_points_are_annotated(entry):
    module, name = entry.rsplit(".", 1)
    tree = ast.parse((PACKAGE / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8"))
    function, = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    assert function.returns and all(argument.annotation for argument in function.args.args)
