"""Load models from checkpoints of every format, and save them.

This package's format is a folder with ``config.json`` and ``model.safetensors``, as written by ``save_pretrained``, or
a single ``.safetensors`` or ``.ckpt`` file that includes its configuration. Checkpoints of the published code
(``.pth``, a state dict with the prefix ``module.``) load directly. No file is ever allowed to run code.
"""

import contextlib
import hashlib
import json
import math
import os
import pickle
import pickletools
import re
import shutil
import zipfile
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from .downloads import CheckpointError, find_checkpoint
from .files import file_hash, new_folder, replacing, write_json, write_text
from .network.classification import SsambaForAudioClassification, SsambaForAudioFrameClassification
from .network.configuration import SsambaConfig
from .network.modeling import SsambaModel, current_names
from .network.positions import stretch_positions
from .network.pretraining import SsambaForPreTraining

CONFIG_KEY = "ssamba_config"

ENCODER = SsambaModel.base_model_prefix + "."  # prefix of the encoder's names in a model with heads
# Modules that a model has in addition to the encoder; they identify a checkpoint's class.
HEADS = {
    SsambaForPreTraining: {"mask_embed", "contrastive_head", "reconstruction_head"},
    SsambaForAudioClassification: {"classifier", "classifier_norm"},
    SsambaForAudioFrameClassification: {"frame_classifier", "frame_classifier_norm"},
}

STATE_NAMES = ("state_dict", "model", "model_state_dict", "net")  # keys under which training loops keep a state dict
MARK = "layers.0.mixer.A_log"  # a parameter of every encoder, which locates it within a larger model

# An official checkpoint also holds the pretraining grid and heads, and an unused classifier.
OFFICIAL_GRID = ("p_input_fdim", "p_input_tdim")
OFFICIAL_CLASSIFIER = "v.head."
OFFICIAL_NAMES = {"v.": ENCODER, "cpredlayer.": "contrastive_head.", "gpredlayer.": "reconstruction_head."}

S3PRL_NAMES = {"Downstream", "Featurizer"}  # in a checkpoint of s3prl's downstream training
SAVE_ALONE = "as in torch.save(model.state_dict(), FILE)"

# Needed by transformers to load a classifier's folder in a program that has not imported this package.
AUTO_CLASSES = {
    SsambaForAudioClassification: "AutoModelForAudioClassification",
    SsambaForAudioFrameClassification: "AutoModelForAudioFrameClassification",
}
CODE_MODULE = "ssamba"
CODE = f'''"""The classes of this checkpoint, from the installed package ssamba-upstream."""

from ssamba_upstream import SsambaConfig, SsambaFeatureExtractor, SsambaModel
from ssamba_upstream import {", ".join(model_class.__name__ for model_class in AUTO_CLASSES)}
'''


def load_model(path: str | os.PathLike, block_order: str | None = None,
               model_class: type[PreTrainedModel] | None = SsambaModel, **overrides) -> PreTrainedModel:
    """Load a checkpoint of any format.

    Args:
        path: a folder, or a ``.safetensors``, ``.ckpt``, ``.pt`` or ``.pth`` file, in this package's format or the
            published code's; or a name, such as "ssamba_starter" or "ssamba_tiny", see
            :func:`ssamba_upstream.downloads.find_checkpoint`. The weights in a file may be under "state_dict",
            "model", "model_state_dict" or "net", next to an optimizer or other training state. The network may be part
            of a larger one, with any prefix, such as "module.", "model." or "backbone."; names with another prefix are
            ignored. From weights of this package's models without a configuration, only the encoder is read, with 128
            mel bands or ``num_mel_bins``.
        block_order: "paired" or "sequential". Default: as in the checkpoint, or "paired", the order used in training,
            for the published code's files, which do not store it. Required for this package's weights without a
            configuration.
        model_class: SsambaModel, the encoder alone, or a class with heads: SsambaForPreTraining,
            SsambaForAudioClassification or SsambaForAudioFrameClassification. None selects the class whose heads the
            checkpoint has.
        overrides: fields of :class:`SsambaConfig` to change, such as ``time_stride=10``; not ``dtype``.

    Returns:
        A model of that class in float32, in eval mode.

    Raises:
        CheckpointError: If the checkpoint does not exist, is not a SSAMBA checkpoint, is damaged, is a pickle that
            contains code, or has weights that do not match the configuration exactly.
        ValueError: If no network can be built from the overrides.
    """
    config, state = _read(path, block_order, overrides.get("num_mel_bins", SsambaConfig().num_mel_bins))
    state, stored = current_names(state), _class_of(state)
    model_class = stored if model_class is None else model_class
    if model_class is SsambaModel:
        heads = HEADS.get(stored, ())
        state = {name.removeprefix(ENCODER): t for name, t in state.items() if name.split(".")[0] not in heads}
    elif model_class is not stored:
        held = "the encoder alone" if stored is SsambaModel else f"a {stored.__name__}"
        raise CheckpointError(f"{path} holds {held}, without the heads of a {model_class.__name__}")
    if block_order is not None:
        overrides["block_order"] = block_order
    model = model_class(_in_float32(config, overrides))
    _load_strictly(model, state, path)
    return model.eval()


def load_config(path: str | os.PathLike, **overrides) -> SsambaConfig:
    """Return the SsambaConfig of the model that :func:`load_model` would load."""
    path = find_checkpoint(path)
    config = _read_folder_config(path) if path.is_dir() else _read(path)[0]
    return _in_float32(config, overrides)


def save_model(model: PreTrainedModel, path: str | os.PathLike) -> None:
    """Save a model in this package's format, for :func:`load_model`.

    Args:
        model: a SsambaModel, or one of the classes with heads.
        path: a file ending in ``.safetensors`` or ``.ckpt``, which includes the configuration; or a folder, new or
            empty.

    Raises:
        FileExistsError: If the folder exists and is not empty.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        _write_safetensors(model, path, CONFIG_KEY, json.dumps(_fields(model), sort_keys=True))
    elif path.suffix == ".ckpt":
        content = {CONFIG_KEY: _fields(model), "state_dict": _contiguous(model.state_dict())}
        # If torch opens the file itself, it writes the file's name into it.
        with replacing(path) as target, target.open("wb") as file:
            torch.save(content, file)
    else:
        with new_folder(path) as folder:
            model.save_pretrained(folder)
            # safetensors makes its files readable by the owner only.
            shutil.copymode(folder / "config.json", folder / "model.safetensors")


def write_model(model, folder, **fields):
    """Write a model's ``config.json``, with some fields changed, and ``model.safetensors`` into a folder; each replaces
    an earlier file atomically."""
    folder = Path(folder)
    write_json({**_fields(model), "architectures": [type(model).__name__], **fields}, folder / "config.json")
    _write_safetensors(model, folder / "model.safetensors", "format", "pt")  # required by transformers < 5


def _write_safetensors(model, path, key, value):
    # Only one key: safetensors writes several in random order, and files with equal weights would differ.
    with replacing(path) as target:
        save_file(_contiguous(model.state_dict()), target, metadata={key: value})


def new_classifier(checkpoint, model_class, labels, frames, size="tiny", **overrides):
    """Create a classifier to fine-tune: an encoder with a random head, drawn from torch's global generator.

    If the clips are longer than the encoder's learned positions, and those are "physical", they are stretched along
    time once, and ``pretraining_frames`` becomes the clips' length. "published" positions stretch automatically.

    Args:
        checkpoint: checkpoint of the encoder, see :func:`load_model`; its heads are ignored. None: random weights.
        model_class: SsambaForAudioClassification or SsambaForAudioFrameClassification.
        labels: names of the classes, in the order of their indices.
        frames: length of the clips in fbank frames.
        size: "tiny", "small" or "base", for an encoder with random weights.
        overrides: fields of :class:`SsambaConfig`, such as ``time_stride``, ``drop_path_rate``, ``problem_type`` or
            ``pooling``.

    Returns:
        A model of that class in float32, in eval mode.

    Raises:
        CheckpointError: See :func:`load_model`.
        ValueError: If there are no classes or two share a name, or no network can be built from the overrides.
    """
    if not labels or len(set(labels)) < len(labels):
        raise ValueError(f"labels must be distinct class names, at least one; got {list(labels)}")
    if checkpoint is None:
        encoder = SsambaModel(SsambaConfig.from_size(size, **overrides))
    else:
        encoder = load_model(checkpoint, **{"problem_type": None, "pooling": "avgtok", **overrides})
    fields, weights = encoder.config.to_dict(), encoder.state_dict()
    ends = encoder.config.positions == "physical" and not encoder.config.causal
    if ends and frames > encoder.config.pretraining_frames:
        columns = math.ceil(frames / encoder.config.patch_size[1])
        weights["pos_embed"] = stretch_positions(weights["pos_embed"], encoder.config, columns)
        fields["pretraining_frames"] = columns * encoder.config.patch_size[1]
    fields["clip_frames"] = frames
    fields["id2label"] = dict(enumerate(labels))
    fields["label2id"] = {label: i for i, label in enumerate(labels)}
    model = model_class(SsambaConfig(**fields))
    model.ssamba.load_state_dict(weights)
    return model.eval()


def write_classifier(model, feature_extractor, folder):
    """Write a classifier with its feature extractor into a folder.

    Each file replaces an earlier one atomically, so a run's folder can be loaded at any moment. Transformers loads it
    after ``import ssamba_upstream``, or without that import if given ``trust_remote_code=True``: ``auto_map`` in
    ``config.json`` and ``preprocessor_config.json`` names ``ssamba.py``, which imports the classes from the installed
    package.

    The configuration adopts the front end and the clip length of the feature extractor.
    """
    folder = Path(folder)
    classes = {"AutoConfig": SsambaConfig, "AutoModel": SsambaModel, AUTO_CLASSES[type(model)]: type(model)}
    read = {**asdict(feature_extractor.front_end), "clip_frames": feature_extractor.max_length}
    features = {**feature_extractor.to_dict(), "whole_seconds": model.labels_seconds,
                "auto_map": _auto_map({"AutoFeatureExtractor": type(feature_extractor)})}
    write_text(CODE, folder / f"{CODE_MODULE}.py")
    write_json(features, folder / "preprocessor_config.json")
    write_model(model, folder, **read, auto_map=_auto_map(classes))


def describe_size(config):
    """Describe a network's size: "tiny", "small" or "base", or for other networks such as "12 blocks of width 192"."""
    published = config.size and config.num_hidden_layers == SsambaConfig().num_hidden_layers
    return config.size if published else f"{config.num_hidden_layers} blocks of width {config.hidden_size}"


def content_hash(path):
    """Compute the SHA-256 of a checkpoint: of the configuration and weights for a folder in this package's format, of
    all files and their names for another folder, or of a single file."""
    path = find_checkpoint(path)
    files = [path / "config.json", path / "model.safetensors"]
    if not all(file.is_file() for file in files):
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    total = hashlib.sha256()
    for file in files:
        total.update(file.relative_to(path).as_posix().encode())
        total.update(bytes.fromhex(file_hash(file)))
    return total.hexdigest()


def _class_of(state):
    parts = {name.split(".")[0] for name in state}
    return next((model_class for model_class, heads in HEADS.items() if parts & heads), SsambaModel)


def _read(path, block_order=None, num_mel_bins=None):
    """Read a checkpoint of any format. Return (SsambaConfig, state dict of SsambaModel or a model with heads)."""
    path = find_checkpoint(path)
    if path.is_dir():
        return _read_folder(path)
    if path.suffix == ".safetensors":
        metadata, state = _read_safetensors(path)
        config = json.loads(metadata[CONFIG_KEY]) if CONFIG_KEY in metadata else None
        if config is None and (path.name, path.with_name("config.json").is_file()) == ("model.safetensors", True):
            return _read_folder(path.parent)
    else:
        content = _read_pickle(path)
        config = content.get(CONFIG_KEY)
        state = next((content[name] for name in STATE_NAMES if isinstance(content.get(name), dict)), content)
    state = _without_prefix(state, path)
    if config is not None:
        return SsambaConfig(**config), state
    if any(name in OFFICIAL_GRID or name.startswith("v.") for name in state):
        return _read_official(state, path)
    return _read_bare(state, path, block_order, num_mel_bins)


def _without_prefix(state, path):
    """Return the network's part of a state dict, without its prefix; or the whole dict if it has no encoder."""
    state = {str(name): tensor for name, tensor in state.items()}
    prefixes = {found[1] for name in state if (found := re.fullmatch(rf"(|.*\.){re.escape(MARK)}", name))}
    if len(prefixes) > 1:
        raise CheckpointError(f"{path} holds {len(prefixes)} encoders, with the prefixes "
                              f"{', '.join(map(repr, sorted(prefixes)))}. Save the state dict of one of them alone, "
                              f"{SAVE_ALONE}")
    if not prefixes:
        return state
    prefix = re.sub(rf"(^|(?<=\.))({re.escape(ENCODER)}|v\.)$", "", prefixes.pop())
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _read_folder(folder):
    return _read_folder_config(folder), _read_safetensors(folder / "model.safetensors")[1]


def _read_folder_config(folder):
    config = folder / "config.json"
    for file in (config, folder / "model.safetensors"):
        if not file.is_file():
            raise CheckpointError(f"{folder} is not a checkpoint: it has no {file.name}")
    try:
        fields = json.loads(config.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{config} cannot be read: {error}") from error
    if fields.get("model_type") != SsambaConfig.model_type:
        raise CheckpointError(f"{folder} holds a {fields.get('model_type')!r} model; expected "
                              f"{SsambaConfig.model_type!r}")
    return SsambaConfig(**fields)


def _read_safetensors(file):
    try:
        with safe_open(file, framework="pt") as content:
            metadata = content.metadata() or {}
        return metadata, load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged or not a safetensors file: {error}") from error


def _read_pickle(file):
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise almost anything
        if isinstance(error, pickle.UnpicklingError) and S3PRL_NAMES <= _strings(file):
            raise _s3prl_checkpoint(file) from None
        raise CheckpointError(f"{file} {why_unreadable(error)}. Save the state dict alone where the file was written, "
                              f"{SAVE_ALONE}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__}; expected a state dict")
    if S3PRL_NAMES <= content.keys():
        raise _s3prl_checkpoint(file)
    return content


def why_unreadable(error):
    """Return why ``torch.load`` failed, without torch's advice to let the file run code."""
    if not isinstance(error, pickle.UnpicklingError):
        return f"is damaged or truncated ({type(error).__name__})"
    found = re.search(r"GLOBAL (\S+)", str(error))
    held = f"but holds {found[1]}" if found else "as torch.save writes it"
    return f"is refused: it is not a plain state dict {held}, and reading it might run code"


def _strings(file):
    """Return the strings in a file written by torch.save, without unpickling it."""
    with contextlib.suppress(zipfile.BadZipFile, ValueError):  # an older format, or damaged
        with zipfile.ZipFile(file) as archive:
            pickles = [archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl")]
        return {argument for content in pickles for _, argument, _ in pickletools.genops(content)
                if isinstance(argument, str)}
    return set()


def _s3prl_checkpoint(file):
    return CheckpointError(f"{file} is a checkpoint of s3prl's downstream training, not of an upstream. Evaluate or "
                           "resume it with -e, and give -k the upstream's own checkpoint")


def _read_official(state, path):
    """Read a checkpoint of the published code: its weights, and its configuration from their shapes."""
    missing = [name for name in (*OFFICIAL_GRID, "v.cls_token", f"v.{MARK}") if name not in state]
    if missing:
        raise CheckpointError(f"{path} is not a SSAMBA checkpoint: it lacks {', '.join(missing)}")
    try:
        config = SsambaConfig(
            **_sizes(state, "v."), num_mel_bins=int(state["p_input_fdim"]),
            pretraining_frames=int(state["p_input_tdim"]), block_order="paired", final_norm_twice=True,
        )
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is not a complete SSAMBA checkpoint: {error}") from error
    weights = {
        _our_name(name): tensor for name, tensor in state.items()
        if name not in OFFICIAL_GRID and not name.startswith(OFFICIAL_CLASSIFIER)
    }
    return config, weights


def _read_bare(state, path, block_order, num_mel_bins):
    """Read the encoder from a state dict of this package's models that has no configuration."""
    stored = _class_of(state)
    prefix = ENCODER if ENCODER + MARK in state else ""
    weights = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    if "cls_token" not in weights or MARK not in weights:
        held = ", ".join(map(str, [*state][:4]))
        raise CheckpointError(f"{path} is not a SSAMBA checkpoint: it holds {held} and so on")
    if block_order is None:
        raise CheckpointError(
            f"{path} holds the weights of a {stored.__name__} without its configuration, and the weights do not show "
            f"the order of the blocks. Give a folder written by save_pretrained or a run of this package; or, for "
            f"the encoder alone, set the order, as in `ssamba convert {path} --block-order sequential --out OUT`"
        )
    if "layers.0.mixer.A_b_log" not in weights:
        raise CheckpointError(f"{path} holds a forward-only network without its configuration. Give a folder written "
                              "by save_pretrained or a run of this package")
    try:
        sizes = _sizes(weights, "")
        rows = num_mel_bins // sizes["patch_size"][0]
        columns = (weights["pos_embed"].shape[1] - 1) // rows
        frames = columns * sizes["patch_size"][1]
        config = SsambaConfig(
            **sizes, num_mel_bins=num_mel_bins, pretraining_frames=frames, block_order=block_order
        )
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is not a complete SSAMBA checkpoint: {error}") from error
    return config, weights


def _our_name(name):
    for official, ours in OFFICIAL_NAMES.items():
        if name.startswith(official):
            return ours + name.removeprefix(official)
    return name


def _sizes(state, prefix):
    """Infer fields of a SsambaConfig from the shapes of an encoder's weights."""
    layers, mixer = f"{prefix}layers.", f"{prefix}layers.0.mixer."
    channels, states = state[mixer + "A_log"].shape
    hidden_size = state[prefix + "cls_token"].shape[-1]
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": 1 + max(int(name.removeprefix(layers).split(".")[0]) for name in state
                                     if name.startswith(layers)),
        "state_size": states,
        "conv_kernel": state[mixer + "conv1d.weight"].shape[-1],
        "expand": channels // hidden_size,
        "time_step_rank": state[mixer + "dt_proj.weight"].shape[-1],
        "patch_size": list(state[prefix + "patch_embed.proj.weight"].shape[2:]),
        "norm": "layer_norm" if prefix + "norm_f.bias" in state else "rms_norm",
    }


def _load_strictly(model, state, path):
    expected = model.state_dict()
    problems = [f"lacks {name}" for name in expected if name not in state]
    problems += [f"has {name}, which the network lacks" for name in state if name not in expected]
    problems += [
        f"has {name} {tuple(state[name].shape)}, the network {tuple(tensor.shape)}"
        for name, tensor in expected.items() if name in state and state[name].shape != tensor.shape
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise CheckpointError(f"{path} does not match its configuration: it {', it '.join(problems[:3])}{more}")
    model.load_state_dict(state)


def _in_float32(config, overrides):
    """Return a configuration with some fields overridden, and with the dtype of loaded models."""
    if "dtype" in overrides:
        raise ValueError("dtype cannot be set: models are loaded in float32. Convert the loaded model, as in "
                         "model.to(torch.bfloat16)")
    return SsambaConfig(**{**config.to_dict(), **overrides, "dtype": "float32"})


def _fields(model):
    """Return the model's configuration with the dtype of its weights, in which transformers 5 loads them, and without
    the local path that transformers stores in it."""
    fields = {**model.config.to_dict(), "dtype": str(model.dtype).removeprefix("torch.")}
    return {name: value for name, value in fields.items() if name != "_name_or_path"}


def _auto_map(classes):
    return {auto_class: f"{CODE_MODULE}.{found.__name__}" for auto_class, found in classes.items()}


def _contiguous(state):
    return {name: tensor.contiguous() for name, tensor in state.items()}
