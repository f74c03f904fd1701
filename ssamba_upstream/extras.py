"""The extras of this package, and what each of them installs."""

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


def extras_with(module) -> list[str]:
    """The extras that install a module, such as "onnxruntime.quantization"."""
    return [extra for extra, modules in EXTRAS.items() if module.split(".")[0] in modules]
