"""Arguments that several commands have."""

import sys
from dataclasses import asdict
from pathlib import Path

SIZES = ("tiny", "small", "base")
SUPERB_CORPORA = {
    "pr": "LibriSpeech and its lexicons", "asr": "LibriSpeech", "sf": "Audio SNIPS", "ic": "Fluent Speech Commands",
    "sid": "VoxCeleb1 and its split file", "asv": "VoxCeleb1 and its trials", "sd": "Libri2Mix in Kaldi's form",
    "qbe": "QUESST 2014", "se": "Voicebank-DEMAND in Kaldi's form", "ss": "Libri2Mix in Kaldi's form",
    "er": "IEMOCAP", "ks": "the parent of speech_commands_v0.01",
}
"""What the root folder of each of SUPERB's tasks holds."""

CHECKPOINT = "path, name such as ssamba_starter or ssamba_tiny, user/repository on the Hugging Face hub, or URL"

INTERRUPTED, OUTPUT_CLOSED = 130, 141  # exit statuses, by the shell's convention of signals: SIGINT, SIGPIPE


def add_checkpoint(parser, name="checkpoint", **options):
    """A checkpoint by path or name, see :func:`ssamba_upstream.downloads.find_checkpoint`."""
    parser.add_argument(name, metavar="CHECKPOINT", **{"help": CHECKPOINT, **options})


def add_out(parser, what, metavar="OUT", default=None):
    """``--out``, where a command writes; required unless there is a default."""
    if default is not None:
        what = f"{what}; default: {default}"
    parser.add_argument("--out", type=Path, metavar=metavar, required=default is None, default=default, help=what)


def add_upstream_config(parser):
    """``-g``, the upstream's options."""
    parser.add_argument("-g", "--upstream-config", metavar="CONFIG",
                        help="the upstream's options: a YAML file, or one of the package's, such as hop_20ms")


def add_device(parser):
    """``--device``, see :func:`ssamba_upstream.training.distributed.choose_device`."""
    parser.add_argument("--device", choices=("cpu", "cuda"),
                        help="device that computes; default: cuda if there is one, else cpu")


def add_cache(parser):
    """``--cache``, ``--cache-limit`` and ``--cache-dtype``, see :class:`ssamba_upstream.plugin.keeping.Keeping`."""
    parser.add_argument("--cache", type=Path, metavar="FOLDER",
                        help="keep hidden states of frozen upstreams in this folder, which several runs may share, so "
                             "that they are computed once")
    parser.add_argument("--cache-limit", type=float, metavar="GB",
                        help="size up to which hidden states are kept; default: no limit")
    parser.add_argument("--cache-dtype", choices=("float16", "bfloat16", "float32"),
                        help="type of the numbers that are kept; default: float16 for frames, float32 for averages")


def upstream_options(options):
    """The upstream's options, a dict, that ``-g`` names."""
    from ..frames import UpstreamOptions

    return asdict(UpstreamOptions.read(options.upstream_config))


def counted(number, noun):
    """ "1 recording", "2 recordings", of a noun whose plural ends in s."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def warn(line):
    """Say what a job over many files goes on without."""
    print(line, file=sys.stderr)


def name_left_out(lines):
    """Print what a job over many files has left out; returns its exit status, 1 where there is anything."""
    for line in lines:
        warn(f"left out: {line}")
    return 1 if lines else 0


def find_recordings(sources):
    """The recordings that files, folders and manifests name, and the folders below them that cannot be searched."""
    from ..corpora.manifest import PARSERS, find_audio, read_manifest

    recordings, unreadable_folders = [], []
    for source in sources:
        if source.is_dir():
            found, unreadable = find_audio([source])
            recordings += found
            unreadable_folders += unreadable
        else:
            recordings += read_manifest(source) if source.suffix in PARSERS else [source]
    return recordings, unreadable_folders
