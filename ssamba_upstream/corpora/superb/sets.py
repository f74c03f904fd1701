"""SUPERB's corpora: their checks by task, and labelled sets for the utterance-level tasks, as used by s3prl."""

from pathlib import Path

from ..labelled import LabelledSet, LabelledSetError
from . import (
    audio_snips,
    diarization_mixtures,
    fluent_speech_commands,
    iemocap,
    libri2mix,
    librispeech,
    quesst14,
    speech_commands,
    voicebank_demand,
    voxceleb1,
    voxceleb1_trials,
)

CORPORA = {"sid": voxceleb1, "er": iemocap, "ks": speech_commands, "ic": fluent_speech_commands}

CHECKS = {
    "pr": librispeech.check_phone_recognition, "asr": librispeech.check_speech_recognition, "sf": audio_snips.check,
    "ic": fluent_speech_commands.check, "sid": voxceleb1.check, "asv": voxceleb1_trials.check,
    "sd": diarization_mixtures.check, "qbe": quesst14.check, "se": voicebank_demand.check, "ss": libri2mix.check,
    "er": iemocap.check, "ks": speech_commands.check,
}
"""Checks of a task's corpus. Arguments: its folder and, for some, a second path, or None for the default. They return a
:class:`ssamba_upstream.corpora.report.CorpusReport`, which also lists the problems; none is raised."""

KALDI_WRITERS = {"se": voicebank_demand.write_kaldi, "ss": libri2mix.write_kaldi}


def read_superb(task, root) -> LabelledSet:
    """Read a corpus in s3prl's layout.

    s3prl draws a different part of some utterances at every step; here, utterances are fixed. Speaker identification
    uses whole utterances instead of eight seconds of them. ``_silence_`` in keyword spotting is every second of the
    background noises; every tenth of these is dev.

    Args:
        task: "sid" for VoxCeleb1 by speaker; "er" for IEMOCAP by emotion, with the five sessions as splits; "ks" for
            Speech Commands by keyword; "ic" for Fluent Speech Commands by intent, such as "activate;lights;kitchen".
        root: the corpus's folder, see ``ssamba corpora check``, including the split file or the metadata.

    Returns:
        LabelledSet. Its groups are the speakers, or the videos for speaker identification.

    Raises:
        LabelledSetError: If the corpus is missing or incomplete.
    """
    try:
        utterances = list(CORPORA[task].labelled_utterances(Path(root)))
        if not utterances:
            raise ValueError("no utterances")
        return LabelledSet(*map(list, zip(*utterances)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LabelledSetError(
            f"{root} is not laid out for {task} ({error}). `ssamba corpora check {task} {root}` lists what is missing"
        ) from error
