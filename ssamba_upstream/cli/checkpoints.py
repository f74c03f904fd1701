"""``ssamba init``, ``convert``, ``info`` and ``cache``."""

from pathlib import Path

from ..extras import installed_version
from .options import SIZES, add_checkpoint, add_out, add_upstream_config, counted

PACKAGES = ("ssamba-upstream", "torch", "torchaudio", "transformers", "s3prl")
OUT = "a new folder, or a file ending in .safetensors or .ckpt"


def add_commands(commands):
    init = commands.add_parser("init", help="write a checkpoint with random weights, for experiments")
    add_out(init, OUT)
    shape = init.add_mutually_exclusive_group()
    shape.add_argument("--size", choices=SIZES, default="tiny", help="size of the network; default: tiny")
    shape.add_argument("--like", metavar="CHECKPOINT",
                       help="use the configuration of this checkpoint, to get a random baseline for its probes")
    init.add_argument("--block-order", choices=("sequential", "paired"),
                      help="order of the blocks; default: sequential")
    init.add_argument("--norm", choices=("layer_norm", "rms_norm"), help="norm of the blocks; default: layer_norm")
    init.add_argument("--seed", type=int, default=0, help="seed of the weights; default: 0")
    init.set_defaults(run=_init)

    convert = commands.add_parser("convert", help="convert a checkpoint of the published code, or between this "
                                                  "package's formats")
    add_checkpoint(convert)
    add_out(convert, OUT)
    convert.add_argument("--block-order", choices=("paired", "sequential"),
                         help="order of the blocks; default: the checkpoint's, paired for files of the published code")
    convert.add_argument("--dtype", choices=("float32", "float16"), default="float32",
                         help="data type of the weights in the file; default: float32. Either loads as float32")
    convert.set_defaults(run=_convert)

    info = commands.add_parser("info", help="describe a checkpoint, or the versions and backends on this machine")
    subject = info.add_mutually_exclusive_group(required=True)
    add_checkpoint(subject, nargs="?")
    subject.add_argument("--system", action="store_true", help="print versions and the backends of the scan")
    info.set_defaults(run=_info)

    cache = commands.add_parser("cache", help="list the hidden states kept by --cache, or estimate their size")
    cache.add_argument("folder", type=Path, nargs="?", help="folder given to --cache")
    cache.add_argument("--size-of", metavar="CHECKPOINT",
                       help="print the size of a checkpoint's hidden states per hour of audio")
    add_upstream_config(cache)
    cache.add_argument("--remove-unused", type=float, metavar="DAYS",
                       help="remove hidden states that no run has used for this many days; 0 removes all of them")
    cache.set_defaults(run=_cache)


def _init(options):
    import torch

    from ..checkpoint import load_config, save_model
    from ..network.configuration import SsambaConfig
    from ..network.modeling import SsambaModel

    torch.manual_seed(options.seed)
    chosen = {"block_order": options.block_order, "norm": options.norm}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    config = load_config(options.like, **chosen) if options.like else SsambaConfig.from_size(options.size, **chosen)
    save_model(SsambaModel(config), options.out)
    print(f"wrote {options.out}: {options.like or options.size}, random weights, seed {options.seed}")


def _convert(options):
    import torch

    from ..checkpoint import CheckpointError, load_model, save_model

    model = load_model(options.checkpoint, block_order=options.block_order, model_class=None)
    model.to(getattr(torch, options.dtype))
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise CheckpointError(f"{options.checkpoint} has weights that are not finite in {options.dtype}")
    save_model(model, options.out)
    print(f"wrote {options.out}: {type(model).__name__}, {_count(model):,} parameters in {options.dtype}")


def _info(options):
    if options.system:
        _print_system()
    else:
        _print_checkpoint(options.checkpoint)


def _cache(options):
    from ..store import contents, folder_bytes, gigabytes, remove_unused

    if options.size_of:
        _print_size(options.size_of, options.upstream_config)
    if options.folder is None:
        return
    if not options.folder.is_dir():
        raise ValueError(f"{options.folder} is not a folder. Give the folder that was passed to --cache.")
    if options.remove_unused is not None:
        for states in remove_unused(options.folder, options.remove_unused):
            print(f"removed {states.path}: {gigabytes(states.size)}")
    for states in contents(options.folder):
        print(_describe_kept(states))
    print(f"{options.folder}: {gigabytes(folder_bytes(options.folder))}")


def _describe_kept(states):
    import time

    from ..store import gigabytes

    found = states.description
    lines = [
        f"{states.path.name}: {counted(states.waveforms, 'waveform')}, {gigabytes(states.size)}, last used "
        f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(states.used))}",
        f"  {found['upstream']}, weights {found['weights'][:12]}, {found['feature']}, "
        f"{'averages over time' if found['time'] == 'average' else 'all frames'}, {found['dtype']}, "
        f"{states.layers} layers of {states.width} features",
    ]
    if states.outdated:
        lines.append("  written by another version of this package, and not readable by this one; "
                     "--remove-unused removes it")
    return "\n".join(lines)


def _print_size(checkpoint, upstream_config):
    import dataclasses

    from ..frames import FrameEncoder, UpstreamOptions
    from ..store import DTYPES, gigabytes

    read = UpstreamOptions.read(upstream_config)
    row = "{:18} {:9} {:>7} {:>9} {:>17} {:>17} {:>17}".format
    print(row("frequency_pooling", "dtype", "layers", "features", "1 hour of frames", "of it one layer",
              "1000 averages"))
    for pooling in ("concat", "mean"):
        encoder = FrameEncoder.from_checkpoint(checkpoint, dataclasses.replace(read, frequency_pooling=pooling))
        layers = encoder.model.config.num_hidden_layers + 1
        frames = 3600 * encoder.sampling_rate / encoder.windowing.hop
        for name, dtype in DTYPES.items():
            average = layers * encoder.width * dtype.itemsize
            sizes = frames * average, frames * average / layers, 1000 * average
            print(row(pooling, name, layers, encoder.width, *map(gigabytes, sizes)))
    print(f"with a frame every {1000 * encoder.windowing.hop / encoder.sampling_rate:g} ms")


def _print_checkpoint(checkpoint):
    from ..checkpoint import describe_size, load_model
    from ..network.classification import SsambaClassifier

    model = load_model(checkpoint, model_class=None)
    config = model.config
    rows, columns = config.learned_grid
    lines = {
        "checkpoint": checkpoint,
        "size": describe_size(config),
        "parameters": f"{_count(model.base_model):,}",
        "blocks": f"{config.num_hidden_layers}, {config.block_order}, {config.norm}",
        "reads": f"{config.token_order}, {config.directions}{', causal' if config.causal else ''}",
        "width": f"{config.hidden_size}, {config.intermediate_size} channels, {config.state_size} states",
        "patches": f"{config.patch_size[0]} mel bands x {config.patch_size[1]} frames",
        "positions": f"{rows} x {columns}, from clips of {config.front_end.seconds_of(config.pretraining_frames):g} s",
        "log-mel": _describe_front_end(config.front_end),
        "hidden states": f"{config.num_hidden_layers + 1}",
    }
    if config.taught_by:
        lines["teacher"] = config.taught_by
    if isinstance(model, SsambaClassifier):
        lines["classes"] = f"{config.num_labels}: {', '.join(config.id2label.values())}"
    for name, value in lines.items():
        print(f"{name:14} {value}")


def _describe_front_end(front_end):
    highest = front_end.highest_frequency or front_end.sampling_rate / 2
    normalised = f"mean {front_end.log_mel_mean:g}, deviation {front_end.log_mel_std:g}"
    return (f"{front_end.num_mel_bins} bands of {front_end.lowest_frequency:g} to {highest:g} Hz at "
            f"{front_end.sampling_rate} Hz, {front_end.frame_length:g} ms every {front_end.frame_shift:g} ms, "
            + (normalised if front_end.normalisation == "data" else "normalised by the clip"))


def _print_system():
    import torch

    from .. import ops

    for package in PACKAGES:
        print(f"{package:16} {installed_version(package)}")
    print(f"{counted(torch.get_num_threads(), 'thread')}, compiled CPU kernels for "
          f"{ops.cpu.instruction_set or 'no instruction set'}")
    library, why = ops.product.choice()
    print(f"linear products on cpu (float32): {library}\n  {why}")
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        name = torch.cuda.get_device_name() if device == "cuda" else "float32"
        print(f"scan on {device} ({name}): {ops.choose_backend(torch.empty(0, device=device))}")
        for backend in ops.BACKENDS:
            print(f"  {backend:10} {ops.unavailable_reason(backend, device) or 'available'}")


def _count(model):
    return sum(parameter.numel() for parameter in model.parameters())
