"""``ssamba corpora``, ``manifest`` and ``prepare``."""

import sys
from pathlib import Path

from .options import SUPERB_CORPORA, add_out, counted, name_skipped

DATA_SETS = ("audioset20k", "esc50", "speech_commands_v1", "speech_commands_v2", "urban8k_scenes")


def add_commands(commands):
    corpora = commands.add_parser("corpora", help="check SUPERB's corpora, or create small ones")
    actions = corpora.add_subparsers(dest="action", metavar="ACTION", required=True)

    check = actions.add_parser("check", help="check a corpus for s3prl's layout, and list missing files")
    check.add_argument("task", choices=SUPERB_CORPORA,
                       help="; ".join(f"{task}: {corpus}" for task, corpus in SUPERB_CORPORA.items()))
    check.add_argument("root", type=Path, help="folder of the corpus")
    check.add_argument("second", type=Path, nargs="?", metavar="SECOND",
                       help="pr: the lexicons' folder; sid: the split file; asv: the list of trials; er: the metadata "
                            "folder; ks: the test set's folder. Default: found in the corpus's folder")
    check.set_defaults(run=_check, needs_network=False)

    metadata = actions.add_parser("emotion-metadata", help="write the metadata of IEMOCAP's five folds for s3prl")
    metadata.add_argument("root", type=Path, help="folder that contains Session1 to Session5")
    add_out(metadata, "folder for the metadata")
    metadata.set_defaults(run=_write_metadata, needs_network=False)

    kaldi = actions.add_parser("kaldi", help="write the lists of wavs that s3prl's enhancement and separation read")
    kaldi.add_argument("task", choices=("se", "ss"), help="se: Voicebank-DEMAND; ss: Libri2Mix")
    kaldi.add_argument("root", type=Path, help="folder of the corpus, as released or generated")
    add_out(kaldi, "a new folder")
    kaldi.set_defaults(run=_write_kaldi, needs_network=False)

    synthesise = actions.add_parser("synth", help="create small synthetic corpora in the official layouts of all tasks")
    add_out(synthesise, "a new folder")
    synthesise.add_argument("--seed", type=int, default=0, help="seed of the recordings; default: 0")
    synthesise.set_defaults(run=_synthesise, needs_network=False)

    for name, what in (
        ("fsdd", "arrange the Free Spoken Digit Dataset as Speech Commands and VoxCeleb1"),
        ("fsdd-joined", "join the Free Spoken Digit Dataset's digits, three at a time, as Fluent Speech Commands and "
                        "LibriSpeech"),
    ):
        fsdd = actions.add_parser(name, help=what)
        fsdd.add_argument("recordings", type=Path, help="the dataset's folder of wav files")
        add_out(fsdd, "a new folder")
        fsdd.set_defaults(run=_write_fsdd)

    manifest = commands.add_parser("manifest", help="list the audio files in folders, for pretraining")
    manifest.add_argument("folders", type=Path, nargs="+", metavar="FOLDER",
                          help="folders of audio files, searched at any depth")
    add_out(manifest, "manifest to write", "OUT.jsonl")
    manifest.add_argument("--statistics", nargs="*", metavar="FIELD=VALUE",
                          help="also measure the log-mel's mean and deviation; set fields such as sampling_rate=22050 "
                               "num_mel_bins=64 for a front end other than the published one")
    manifest.set_defaults(run=_manifest, needs_network=False)

    prepare = commands.add_parser("prepare", help="turn a downloaded data set into a labelled set, and check it")
    prepare.add_argument("set", choices=DATA_SETS, help="name of the data set")
    prepare.add_argument("root", type=Path,
                         help="folder of the data set; if it does not exist, the error says what to download")
    add_out(prepare, "labelled set to write", "OUT.csv")
    prepare.set_defaults(run=_prepare)


def _check(options):
    from ..corpora.superb.sets import CHECKS

    report = CHECKS[options.task](options.root, options.second)
    print(report)
    return 0 if report.ok else 1


def _write_metadata(options):
    from ..corpora.superb.iemocap import build_emotion_metadata

    build_emotion_metadata(options.root, options.out)
    print(f"wrote {options.out}")


def _write_kaldi(options):
    from ..corpora.superb.sets import KALDI_WRITERS

    KALDI_WRITERS[options.task](options.root, options.out)
    print(f"wrote {options.out}")


def _synthesise(options):
    from ..corpora.synthetic.corpora import synthesise_corpora

    synthesise_corpora(options.out, options.seed)
    print(f"wrote {options.out}")


def _write_fsdd(options):
    from ..corpora.superb.fsdd import arrange_fsdd, join_fsdd

    write = arrange_fsdd if options.action == "fsdd" else join_fsdd
    unreadable = write(options.recordings, options.out)
    print(f"wrote {options.out}")
    return name_skipped(unreadable)


def _manifest(options):
    from ..corpora.manifest import read_manifest, write_manifest

    front_end = None if options.statistics is None else _front_end(options.statistics)
    found = write_manifest(options.folders, options.out)
    print(f"wrote {options.out}: {counted(found.files, 'file')}, {found.hours:.2f} hours")
    status = 0
    if found.unreadable:
        print(f"skipped: {counted(len(found.unreadable), 'unreadable path')}, see {options.out}.unreadable.txt",
              file=sys.stderr)
        status = 1
    if front_end is not None:
        from ..corpora.statistics import measure_statistics

        measured = measure_statistics(read_manifest(options.out), front_end)
        print(f"log-mel of {measured.frames} frames: log_mel_mean={measured.mean:.7g} "
              f"log_mel_std={measured.deviation:.7g}")
        status |= name_skipped(measured.unreadable)
    return status


def _front_end(settings):
    """Return the FrontEnd given by "field=value" strings, with values in YAML."""
    import yaml

    from .. import auto_classes  # noqa: F401  (makes torchaudio, which transformers imports, importable)
    from ..network.configuration import PUBLISHED_FRONT_END, FrontEnd

    pairs = dict(setting.partition("=")[::2] for setting in settings)
    known = vars(PUBLISHED_FRONT_END)
    if unknown := sorted(set(pairs) - set(known)):
        raise ValueError(f"--statistics has no field {', '.join(unknown)}. Choose from {', '.join(known)}")
    return FrontEnd(**{name: yaml.safe_load(value) for name, value in pairs.items()})


def _prepare(options):
    from ..corpora.preparation import prepare

    report = prepare(options.set, options.root, options.out)
    print(report)
    print(f"wrote {options.out}")
    return name_skipped(report.unreadable)
