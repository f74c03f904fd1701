"""SUPERB's twelve tasks: s3prl's downstream and config, the metrics and how s3prl prints them, and the predictions."""

from dataclasses import dataclass
from functools import partial

from ..configs import configs_folder
from ..corpora.superb import (
    audio_snips,
    diarization_mixtures,
    fluent_speech_commands,
    iemocap,
    librispeech,
    quesst14,
    speech_commands,
    voxceleb1,
    voxceleb1_trials,
)
from .predictions import (
    DetectedTerms,
    Lines,
    Metrics,
    SpeakerActivities,
    finite,
    matching,
    one_of,
    values_of,
    words_of,
)

FOLDS = tuple(f"fold{number}" for number in range(1, len(iemocap.SESSIONS) + 1))


@dataclass(frozen=True)
class Metric:
    """One of SUPERB's metrics.

    Attributes:
        name: name in the table.
        pattern: pattern of the line in which s3prl prints the value, with the value as its group; "{split}" stands for
            the split. None if a scorer measures it.
        factor: factor from s3prl's value to the table's.
        unit: unit in the table.
        higher_is_better: If False, lower is better.
    """

    name: str
    pattern: str | None
    factor: float = 100.0
    unit: str = "%"
    higher_is_better: bool = True


@dataclass(frozen=True)
class SuperbTask:
    """One of SUPERB's tasks.

    Attributes:
        downstream: s3prl's name for the task.
        config: stem of the config in this package.
        metrics: metrics on the test set.
        dev_metric: metric that decides on dev. Default: the first of ``metrics``.
        best: the checkpoint that s3prl keeps as the best on dev. None if there is no dev set; then the states at every
            ``eval_step`` are evaluated on test.
        start: s3prl's initial best value, in its own unit, which the first best checkpoint must beat.
        dev, test: s3prl's names for the splits.
        searched: "learning_rate", or "layer" for a task without training.
        folds: test folds.
        scorer: external scoring program, see :mod:`ssamba_upstream.superb.scorers`.
        drops_incomplete_batches: If True, s3prl waits forever for a batch that the corpus cannot fill.
        predictions: prediction files to submit, by name in the zip file without "_public"; with folds, by fold.
    """

    downstream: str
    config: str
    metrics: tuple[Metric, ...]
    dev_metric: Metric | None = None
    best: str | None = "dev-best.ckpt"
    start: float = 0.0
    dev: str = "dev"
    test: str = "test"
    searched: str = "learning_rate"
    folds: tuple = (None,)
    scorer: str | None = None
    drops_incomplete_batches: bool = False
    predictions: tuple = ()

    @property
    def chosen_by(self) -> Metric:
        """The metric that decides on dev."""
        return self.dev_metric or self.metrics[0]


ACCURACY = Metric("accuracy", r"{split} acc: (\S+)")
PESQ = Metric("PESQ", r"Average pesq of \d+ utts(?: is|:) (\S+)", 1.0, "")
STOI = Metric("STOI", r"Average stoi of \d+ utts(?: is|:) (\S+)")
SI_SDR = Metric("SI-SDRi", r"Average si_sdr of \d+ utts(?: is|:) (\S+)", 1.0, "dB")
MTWV = Metric("MTWV", None, higher_is_better=True)

ARK = {"form": "<utterance> <transcript>", "pattern": r"(\S+) (.*)"}
LIBRISPEECH = {"utterance": r"\d+-\d+-\d{4}", "released": librispeech.RELEASED["test"],
               "find_test_set": librispeech.find_test_set, **ARK}
VOXCELEB_RECORDING = r"id1\d{4}-\S+-\d{5}"
TRANSCRIPT = matching(r"(?:<\w+>|[A-Z' ])*", "a transcript in capitals")


def _phones():
    """Return our config's vocabulary and s3prl's token for unknown words."""
    text = (configs_folder("downstream") / "vocabularies" / "phonemes.txt").read_text(encoding="utf-8")
    return {"<unk>", *text.split()}


def _emotions(number, session):
    return Lines(f"test_fold{number}_predict.txt", "predict.txt", rf"Ses0{number}[FM]_\S+",
                 iemocap.RELEASED_SESSIONS[session], partial(iemocap.find_test_set, session=session),
                 one_of(tuple(iemocap.EMOTIONS)))


TASKS = {
    "pr": SuperbTask(
        "ctc", "phone_recognition", (Metric("PER", r"{split} per: (\S+)", higher_is_better=False),),
        start=float("inf"),
        predictions=(("pr", Lines("test-hyp.ark", "predict.ark", flaw=words_of(_phones()), **LIBRISPEECH)),)),
    "asr": SuperbTask(
        "asr", "speech_recognition",
        (Metric("WER", r"{split} wer: (\S+)", 1.0, higher_is_better=False),
         Metric("WER with LM", None, higher_is_better=False)),
        best="dev-clean-best.ckpt", start=100.0, dev="dev-clean", test="test-clean", scorer="language model",
        predictions=(
            ("asr", Lines("test-clean-noLM-hyp.ark", "predict.ark", flaw=TRANSCRIPT, **LIBRISPEECH)),
            ("asr_lm", Lines("test-clean-LM-hyp.ark", "predict.ark", flaw=TRANSCRIPT, **LIBRISPEECH)))),
    "sf": SuperbTask(
        "ctc", "slot_filling",
        (Metric("slot type F1", r"{split} slot_type_f1: (\S+)"),
         Metric("slot value CER", r"{split} slot_value_cer: (\S+)", higher_is_better=False)),
        predictions=(("sf", Lines(
            "test-hyp.ark", "predict.ark", rf"(?:{'|'.join(audio_snips.SPEAKERS['test'])})\S*",
            audio_snips.RELEASED["test"], audio_snips.find_test_set,
            matching(r"[\w' <>.-]*", "a transcript with slots"), **ARK)),)),
    "ic": SuperbTask(
        "fluent_commands", "intent_classification", (ACCURACY,),
        predictions=(("ic", Lines(
            "test_predict.csv", "predict.csv", r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
            fluent_speech_commands.RELEASED["test"], fluent_speech_commands.find_test_set,
            values_of(fluent_speech_commands.RELEASED_VALUES), "<utterance>,<action>,<object>,<location>",
            r"([^,]+),([^,]+,[^,]+,[^,]+)")),)),
    "sid": SuperbTask(
        "voxceleb1", "speaker_identification", (ACCURACY,),
        predictions=(("sid", Lines(
            "test_predict.txt", "predict.txt", VOXCELEB_RECORDING, voxceleb1.RELEASED["test"],
            voxceleb1.find_test_set,
            one_of(tuple(f"id{10000 + number}" for number in range(1, voxceleb1.SPEAKERS + 1))))),)),
    "asv": SuperbTask(
        "sv_voxceleb1", "speaker_verification",
        (Metric("EER", r"sv-voxceleb1/{split}-EER: (\S+)", higher_is_better=False),), best=None,
        predictions=(("asv", Lines(
            "test_predict.txt", "predict.txt", f"{VOXCELEB_RECORDING}_{VOXCELEB_RECORDING}",
            voxceleb1_trials.RELEASED["trials"], voxceleb1_trials.find_test_set, finite, "<trial> <score>")),)),
    "sd": SuperbTask(
        "diarization", "speaker_diarization", (Metric("DER", None, higher_is_better=False),),
        Metric("frame accuracy", r"mode {split} acc (\S+) der"), "best-states-dev.ckpt", scorer="dscore",
        predictions=(("sd", SpeakerActivities(
            diarization_mixtures.RELEASED["test"], diarization_mixtures.find_test_set)),)),
    "qbe": SuperbTask(
        "quesst14_dtw", "query_by_example", (MTWV,), searched="layer", scorer="MediaEval's scorer",
        predictions=(("qbe", DetectedTerms(quesst14.find_test_set)),)),
    "se": SuperbTask(
        "enhancement_stft", "speech_enhancement", (PESQ, STOI, SI_SDR), best="best-states-dev.ckpt", start=-10000.0,
        predictions=(("se", Metrics(("si_sdr", "stoi", "pesq"))),)),
    "ss": SuperbTask(
        "separation_stft", "speech_separation", (SI_SDR, PESQ, STOI), best="best-states-dev.ckpt", start=-10000.0,
        predictions=(("ss", Metrics(("si_sdr", "stoi", "pesq"))),)),
    "er": SuperbTask(
        "emotion", "emotion_recognition", (ACCURACY,), folds=FOLDS,
        predictions=tuple((f"er_fold{number}", _emotions(number, session))
                          for number, session in enumerate(iemocap.SESSIONS, 1))),
    "ks": SuperbTask(
        "speech_commands", "keyword_spotting", (ACCURACY,), drops_incomplete_batches=True,
        predictions=(("ks", Lines(
            "test_predict.txt", "predict.txt", rf"(?:{'|'.join(speech_commands.CLASSES)})-\S+\.wav",
            speech_commands.RELEASED["v0.01"]["test"], speech_commands.find_test_set,
            one_of(speech_commands.CLASSES))),)),
}

PREDICTIONS = {name: form for task in TASKS.values() for name, form in task.predictions}


def task_named(name: str) -> SuperbTask:
    """Return a SUPERB task by its name, or a task for another s3prl downstream, which must print an accuracy and keep
    ``dev-best.ckpt`` by it, like SUPERB's utterance-level tasks."""
    return TASKS.get(name) or SuperbTask(name, name, (ACCURACY,))
