"""The extras of this package, what each of them installs, and the versions of installed packages."""

import importlib.metadata

NOT_INSTALLED = "not installed"

EXTRAS = {
    "pretraining": {"tensorboardX", "matplotlib", "webdataset"},
    "distillation": {"pyopen_wakeword"},
    "finetuning": {"tensorboardX", "matplotlib", "sklearn"},
    "probing": {"matplotlib"},
    "onnx": {"onnx", "onnxruntime"},
    "superb": {"librosa", "tensorboardX"},
    "superb-all": {"asteroid", "dtw", "editdistance", "h5py", "lxml", "more_itertools", "pandas", "pesq",
                   "pkg_resources", "pystoi", "sed_eval", "sentencepiece", "sklearn", "tensorboard"},
}
"""Extra -> import names of its modules, without those that it inherits from another extra."""


def installed_version(package) -> str:
    """Return a package's version, or "not installed"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return NOT_INSTALLED


def extras_with(module) -> list[str]:
    """The extras that install a module, such as "onnxruntime.quantization"."""
    return [extra for extra, modules in EXTRAS.items() if module.split(".")[0] in modules]
