"""SUPERB's corpora: their checks by task, and those of whole utterances as labelled sets, as s3prl uses them."""

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
"""The check of a task's corpus: of its folder and, where there is one, a second path, or None for its default."""

KALDI_WRITERS = {"se": voicebank_demand.write_kaldi, "ss": libri2mix.write_kaldi}


def read_superb(task, root) -> LabelledSet:
    """Read a corpus laid out as s3prl needs it.

    Where s3prl draws a part of an utterance anew for every step, here the utterance stays the same: speaker
    identification trains on whole utterances in place of eight seconds of them, and ``_silence_`` of keyword
    spotting is every second of the background noises, each tenth of which is dev.

    Args:
        task: "sid", VoxCeleb1, by speaker; "er", IEMOCAP, by emotion, whose splits are the five sessions; "ks",
            Speech Commands, by keyword; or "ic", Fluent Speech Commands, by intent, such as "activate;lights;kitchen".
        root: the corpus's folder, see ``ssamba corpora check``, with the split file or the metadata in it.

    Returns:
        LabelledSet. Its groups are the speakers, or for speaker identification the videos.

    Raises:
        LabelledSetError: the corpus is not there or lacks something.
    """
    try:
        return LabelledSet(*map(list, zip(*CORPORA[task].labelled_utterances(Path(root)))))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LabelledSetError(
            f"{root} is not laid out for {task} ({error}); `ssamba corpora check {task} {root}` says what is missing"
        ) from error
