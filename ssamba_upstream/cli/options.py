"""Arguments shared by several commands."""

import sys
from dataclasses import asdict
from pathlib import Path

SIZES = ("tiny", "small", "base")
SUPERB_CORPORA = {
    "pr": "LibriSpeech and its lexicons", "asr": "LibriSpeech", "sf": "Audio SNIPS", "ic": "Fluent Speech Commands",
    "sid": "VoxCeleb1 and its split file", "asv": "VoxCeleb1 and its trials", "sd": "Libri2Mix in Kaldi's format",
    "qbe": "QUESST 2014", "se": "Voicebank-DEMAND in Kaldi's format", "ss": "Libri2Mix in Kaldi's format",
    "er": "IEMOCAP", "ks": "Speech Commands, the parent of speech_commands_v0.01",
}
"""Contents of the root folder for each of SUPERB's tasks."""

CHECKPOINT = "path, name such as ssamba_starter or ssamba_tiny, user/repository on the Hugging Face hub, or URL"

INTERRUPTED, OUTPUT_CLOSED = 130, 141  # exit statuses by the shell's convention for signals: SIGINT, SIGPIPE


def add_checkpoint(parser, name="checkpoint", **options):
    """Add a checkpoint by path or name, see :func:`ssamba_upstream.downloads.find_checkpoint`."""
    parser.add_argument(name, metavar="CHECKPOINT", **{"help": CHECKPOINT, **options})


def add_out(parser, what, metavar="OUT", default=None):
    """Add ``--out``, the output path of a command; required unless there is a default."""
    if default is not None:
        what = f"{what}; default: {default}"
    parser.add_argument("--out", type=Path, metavar=metavar, required=default is None, default=default, help=what)


def add_upstream_config(parser):
    """Add ``-g``, the upstream's options."""
    parser.add_argument("-g", "--upstream-config", metavar="CONFIG",
                        help="the upstream's options: a YAML file, or one of the package's, such as hop_20ms")


def add_device(parser):
    """Add ``--device``, see :func:`ssamba_upstream.training.distributed.choose_device`."""
    parser.add_argument("--device", choices=("cpu", "cuda"),
                        help="device to compute on; default: cuda if available, else cpu")


def add_cache(parser):
    """Add ``--cache``, ``--cache-limit`` and ``--cache-dtype``, see :class:`ssamba_upstream.plugin.keeping.Keeping`."""
    parser.add_argument("--cache", type=Path, metavar="FOLDER",
                        help="keep hidden states of frozen upstreams in this folder, so that they are computed once; "
                             "several runs may share it")
    parser.add_argument("--cache-limit", type=float, metavar="GB",
                        help="maximum size of the cached hidden states; default: no limit")
    parser.add_argument("--cache-dtype", choices=("float16", "bfloat16", "float32"),
                        help="data type of cached hidden states; default: float16 for frames, float32 for averages")


def upstream_options(options):
    """Return the upstream's options given by ``-g``, as a dict."""
    from ..frames import UpstreamOptions

    return asdict(UpstreamOptions.read(options.upstream_config))


def counted(number, noun):
    """Return a number with a noun, such as "1 recording" or "2 recordings"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def warn(line):
    """Report a problem that a job over many files can continue without."""
    print(line, file=sys.stderr)


def name_skipped(lines):
    """Print the files that a job has skipped. Return its exit status, 1 if there are any."""
    for line in lines:
        warn(f"skipped: {line}")
    return 1 if lines else 0


def summarise(done, found, written, skipped, unreadable_folders):
    """Print what became of recordings: a sentence on what was done, their numbers, and a sentence for each folder that
    cannot be searched. Return the exit status, 1 if anything was skipped."""
    print(f"{done}; already there: {found - written - skipped}, skipped: {skipped}")
    for line in unreadable_folders:
        warn(f"cannot be searched: {line}")
    return 1 if skipped or unreadable_folders else 0


def find_recordings(sources):
    """Return the recordings in files, folders and manifests, and the subfolders that cannot be searched."""
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
