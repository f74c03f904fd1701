"""predict.zip, written from the files of s3prl's own code, and refused if they are damaged."""

import zipfile
from xml.etree import ElementTree

import numpy as np
import pytest

from ssamba_upstream.cli import main
from ssamba_upstream.corpora.superb.iemocap import RELEASED, RELEASED_SESSIONS
from ssamba_upstream.superb.predictions import SubmissionError
from ssamba_upstream.superb.submission import ER_FOLDS, write_submission
from ssamba_upstream.superb.tasks import PREDICTIONS

pytestmark = pytest.mark.slow  # creating the corpora takes seconds, as does importing s3prl

SUBMIT = {  # from s3prl's submit/submit.py; option: file in the run's folder, file in the task's folder of the zip
    "pr": ("test-hyp.ark", "predict.ark"), "sid": ("test_predict.txt", "predict.txt"),
    "ks": ("test_predict.txt", "predict.txt"), "ic": ("test_predict.csv", "predict.csv"),
    "asr": ("test-clean-noLM-hyp.ark", "predict.ark"), "asr_lm": ("test-clean-LM-hyp.ark", "predict.ark"),
    "qbe": ("benchmark.stdlist.xml", "benchmark.stdlist.xml"), "sf": ("test-hyp.ark", "predict.ark"),
    "asv": ("test_predict.txt", "predict.txt"), "se": ("test_metrics.txt", "metrics.txt"),
    "ss": ("test_metrics.txt", "metrics.txt"),
    **{f"er_fold{fold}": (f"test_fold{fold}_predict.txt", "predict.txt") for fold in range(1, 6)},
}
PLACES = {
    "pr": "LibriSpeech", "asr": "LibriSpeech", "asr_lm": "LibriSpeech", "sf": "SNIPS",
    "ic": "fluent_speech_commands_dataset", "asv": "VoxCeleb1_trials", "sd": "diarization", "qbe": "quesst14Database",
}
PREDICTED = {
    "pr": "{} AH0 T <unk>", "asr": "{} IT'S A DOG", "asr_lm": "{} ", "sf": "{} B-keyword STOP E-keyword A",
    "ic": "{},change language,none,washroom", "asv": "{} -0.25",
}
METRICS = "si_sdr 8.5\nstoi 0.93\npesq 2.5\n"


class NoLogger:
    def add_scalar(self, *args, **kwargs):
        pass


@pytest.fixture(scope="module")
def given(corpora):
    """The corpora, in the form that write_submission accepts."""
    return {"sid": corpora / "VoxCeleb1", "ks": corpora, **dict.fromkeys(ER_FOLDS, corpora / "IEMOCAP"),
            **{name: corpora / place for name, place in PLACES.items()}}


@pytest.fixture(scope="module")
def written(corpora, tmp_path_factory):
    """Prediction files by task, written by s3prl's downstream experts, with a single label per task."""
    pytest.importorskip("librosa")
    from ssamba_upstream.plugin import compat

    compat.apply()
    from s3prl.downstream.emotion.expert import DownstreamExpert as Emotion
    from s3prl.downstream.speech_commands.expert import DownstreamExpert as SpeechCommands
    from s3prl.downstream.voxceleb1.expert import DownstreamExpert as VoxCeleb1

    folder = tmp_path_factory.mktemp("runs")
    voxceleb1, iemocap = corpora / "VoxCeleb1", corpora / "IEMOCAP"
    datarcs = {
        "sid": (VoxCeleb1, dict(file_path=voxceleb1, meta_data=voxceleb1 / "veri_test_class.txt",
                                max_timestep=None)),
        "ks": (SpeechCommands, dict(speech_commands_root=corpora / "speech_commands_v0.01",
                                    speech_commands_test_root=corpora / "speech_commands_test_set_v0.01")),
        **{fold: (Emotion, dict(root=iemocap, meta_data=iemocap / "meta_data", test_fold=fold[3:],
                                pre_load=False, valid_ratio=0.2)) for fold in ER_FOLDS},
    }
    modelrc = {"projector_dim": 2, "select": "UtteranceLevel", "UtteranceLevel": {"pooling": "MeanPooling"}}
    predicted = {"sid": "id10002", "ks": "_unknown_", **dict.fromkeys(ER_FOLDS, "sad")}
    files = {}
    for task, (expert_class, datarc) in datarcs.items():
        run = folder / task
        run.mkdir()
        expert = expert_class(2, {"datarc": datarc, "modelrc": modelrc}, expdir=run)
        names = [name for _, _, name in expert.test_dataset]
        records = {"acc": [1.0], "loss": [0.0], "filename": names,
                   **{f"{kind}{suffix}": [predicted[task]] * len(names)
                      for kind in ("predict", "truth") for suffix in ("", "_speaker")}}
        expert.log_records("test", records=records, logger=NoLogger(), global_step=0)
        files[task] = run / PREDICTIONS[task].source
    return {task: path.read_text() for task, path in files.items()}


@pytest.fixture
def runs(written, tmp_path):
    """A fresh folder for each task's run."""
    for task, text in written.items():
        (tmp_path / task).mkdir()
        (tmp_path / task / PREDICTIONS[task].source).write_text(text)
    return {task: tmp_path / task for task in written}


def refusal(out, runs, corpora=None):
    """Assert that the runs are refused and no zip file is left; return the message."""
    with pytest.raises(SubmissionError) as refused:
        write_submission(out, runs, corpora)
    assert not out.exists()
    return str(refused.value)


# Accepted files


def test_the_zip_holds_what_s3prl_wrote(runs, given, written, tmp_path):
    submission = write_submission(tmp_path / "out", runs, given)
    assert submission.path == tmp_path / "out" / "predict.zip"
    with zipfile.ZipFile(submission.path) as archive:
        assert archive.testzip() is None
        found = {name: archive.read(name).decode() for name in archive.namelist()}
    assert found == {f"predict/{task}_public/predict.txt": text for task, text in written.items()}
    assert submission.predictions == {"sid": 40, "ks": 144, **dict.fromkeys(ER_FOLDS, 40)}
    assert "Not checked" not in str(submission)
    assert "Not included, and so not scored: pr, asr, asr_lm, sf, ic, asv, sd, qbe, se, ss." in str(submission)
    assert str(submission).count("The leaderboard scores the released one") == 7
    assert [path.name for path in submission.path.parent.iterdir()] == ["predict.zip"]


def test_files_for_folders_and_corpora(runs, corpora, tmp_path):
    folder = corpora / "VoxCeleb1"
    submission = write_submission(
        tmp_path / "sub.zip", {"sid": runs["sid"] / "test_predict.txt", "ks": runs["ks"]},
        {"sid": folder / "veri_test_class.txt", "ks": corpora / "speech_commands_test_set_v0.01"})
    assert submission.path == tmp_path / "sub.zip" and zipfile.is_zipfile(submission.path)
    assert "se, ss, er." in str(submission)


def released_predictions(task):
    count = PREDICTIONS[task].released
    if task == "sid":
        return [f"id{10001 + number % 1251}-1zcIwhmdeo4-{number:05d} id11251\n" for number in range(count)]
    if task == "ks":
        return [f"_silence_-{number:08x}_nohash_0.wav _silence_\n" for number in range(count)]
    return [f"Ses0{task[-1]}M_script01_1_F{number:03d} neu\n" for number in range(count)]


def test_without_corpora_it_says_what_was_not_checked(tmp_path):
    runs = {task: tmp_path / f"{task}.txt" for task in ("sid", "ks", *ER_FOLDS)}
    for task, path in runs.items():
        path.write_text("".join(released_predictions(task)))
    submission = write_submission(tmp_path / "out", runs)
    assert str(submission).count("Not checked against the official test set") == 7
    assert submission.warnings == []

    runs["sid"].write_text("".join(released_predictions("sid")[1:]))
    message = refusal(tmp_path / "fewer", {"sid": runs["sid"]})
    assert f"{runs['sid']}, line 8250, the last" in message and "8,251; add --sid-corpus" in message
    runs["sid"].write_text("".join(released_predictions("sid")[1:] + ["1.wav id10001\n"]))
    message = refusal(tmp_path / "other", {"sid": runs["sid"]})
    assert f"{runs['sid']}, line 8251: 1.wav does not match the names" in message
    folds = {fold: runs[fold] for fold in ER_FOLDS}
    message = refusal(tmp_path / "swapped", {**folds, "er_fold1": runs["er_fold2"], "er_fold2": runs["er_fold1"]})
    assert f"{runs['er_fold2']}, line 1: Ses02M_script01_1_F000 does not match the names" in message


def test_released_counts_agree():
    assert sum(RELEASED_SESSIONS.values()) == sum(RELEASED.values())


def test_warns_of_predictions_from_training(runs, given, tmp_path):
    log = runs["ks"] / "log.log"
    training = ("dev at step 10: 0.5\nNew best on dev at step 10: 0.5\ntest at step 10: 0.4\n"
                "dev at step 20: 0.4\ntest at step 20: 0.6\n")
    for text, warned in ((training, True), (training + "test at step 0: 0.4\n", False)):
        log.write_text(text)
        submission = write_submission(tmp_path / "out", {"ks": runs["ks"]}, given)
        assert ("was written during training, at step 20" in str(submission)) == warned
        assert (f"-e {runs['ks'] / 'dev-best.ckpt'}" in str(submission)) == warned


# Refused files


UNKNOWN = {
    "sid": "id10001-nosuchvideo-00001 id10001\n",
    "ks": "yes-nobody_nohash_0.wav yes\n",
    "er_fold1": "Ses01F_nosuch_F000 neu\n",
}
DAMAGES = {  # name: (damage to the lines, line named in the message, text of the message)
    "missing": (lambda lines, task: lines[:4] + lines[5:], "{last}", "1 of the {count} utterances"),
    "duplicate": (lambda lines, task: lines + [lines[2]], "{added}", "is already in line 3"),
    "unknown utterance": (lambda lines, task: lines + [UNKNOWN[task]], "{added}",
                          "is not in the test set"),
    "unknown label": (lambda lines, task: lines[:6] + [f"{lines[6].split()[0]} id11252\n"] + lines[7:], "7",
                      "the label id11252 is not one of"),
    "no label": (lambda lines, task: lines[:6] + [f"{lines[6].split()[0]}\n"] + lines[7:], "7",
                 "is not '<utterance>"),
    "two spaces": (lambda lines, task: [lines[0].replace(" ", "  ")] + lines[1:], "1", "is not '<utterance>"),
    "tab": (lambda lines, task: [lines[0].replace(" ", "\t")] + lines[1:], "1", "is not '<utterance>"),
    "empty line": (lambda lines, task: [*lines, "\n"], "{added}", "is not '<utterance>"),
    "CRLF": (lambda lines, task: lines[:8] + [lines[8][:-1] + "\r\n"] + lines[9:], "9", "ends with CRLF"),
    "BOM": (lambda lines, task: ["\ufeff" + lines[0]] + lines[1:], "1", "byte order mark"),
    "empty": (lambda lines, task: [], "1", "the file is empty"),
    "cut off": (lambda lines, task: [*lines[:-1], lines[-1][:-1]], "{count}", "is truncated there"),
}


@pytest.mark.parametrize("task", UNKNOWN)
@pytest.mark.parametrize("damage", DAMAGES)
def test_refuses(damage, task, runs, given, tmp_path):
    change, line, reason = DAMAGES[damage]
    path = runs[task] / PREDICTIONS[task].source
    lines = path.read_text().splitlines(keepends=True)
    numbers = dict(count=len(lines), last=len(lines) - 1, added=len(lines) + 1)
    path.write_bytes("".join(change(lines, task)).encode())
    message = refusal(tmp_path / "out", runs, given)
    named = [text for text in message.splitlines() if f"{path}, line {line.format(**numbers)}" in text]
    assert len(named) == 1 and reason.format(**numbers) in named[0], message
    assert named[0].startswith(f"{task}: "), message


def test_missing_utterances_are_named_with_their_place(runs, given, corpora, tmp_path):
    path = runs["sid"] / "test_predict.txt"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1:]))
    split_file = corpora / "VoxCeleb1" / "veri_test_class.txt"
    utterance = lines[0].split()[0]
    place = 1 + split_file.read_text().splitlines().index(f"3 {utterance.replace('-', '/')}.wav")
    assert f"{utterance} ({split_file}, line {place})" in refusal(tmp_path / "out", {"sid": runs["sid"]}, given)


def test_many_problems_are_counted(runs, given, tmp_path):
    path = runs["ks"] / "test_predict.txt"
    path.write_text(path.read_text().replace("_unknown_\n", "unknown\n"))
    message = refusal(tmp_path / "out", {"ks": runs["ks"]}, given)
    assert message.count("the label unknown is not one of yes, no") == 3
    assert f"{path}: 141 more problems" in message


def test_an_older_zip_survives_a_refusal(runs, given, tmp_path):
    before = write_submission(tmp_path, {"ks": runs["ks"]}, given).path.read_bytes()
    (runs["ks"] / "test_predict.txt").write_text("")
    with pytest.raises(SubmissionError):
        write_submission(tmp_path, {"ks": runs["ks"]}, given)
    assert (tmp_path / "predict.zip").read_bytes() == before


@pytest.mark.parametrize("present", [(1, 2, 3, 4), (2, 3, 4, 5), (1,)])
def test_refuses_fewer_than_five_folds(present, runs, given, tmp_path):
    folds = {fold: runs[fold] for number, fold in enumerate(ER_FOLDS, 1) if number in present}
    message = refusal(tmp_path / "out", {"sid": runs["sid"], **folds}, given)
    assert "ER is scored only with all five folds" in message
    assert all((f"er_fold{number}" in message) == (number not in present) for number in range(1, 6))


def test_refuses_six_folds_and_nothing(runs, tmp_path):
    assert "no er_fold6" in refusal(tmp_path / "out", {**runs, "er_fold6": runs["er_fold1"]})
    assert "nothing to submit" in refusal(tmp_path / "out", {})


def test_refuses_the_run_of_another_fold(runs, given, tmp_path):
    message = refusal(tmp_path / "out", {**runs, "er_fold5": runs["er_fold4"]}, given)
    reason = "has no test_fold5_predict.txt, only test_fold4_predict.txt"
    assert f"er_fold5: {runs['er_fold4']} {reason}" in message


@pytest.mark.parametrize("corpus", ["speech_commands_v0.01", "IEMOCAP"])
def test_refuses_another_corpus(corpus, runs, corpora, tmp_path):
    message = refusal(tmp_path / "out", {"ks": runs["ks"]}, {"ks": corpora / corpus})
    assert f"{corpora / corpus} is not the test set of Speech Commands" in message


def test_refuses_a_damaged_split_file(runs, tmp_path):
    split_file = tmp_path / "iden_split.txt"
    split_file.write_text("3 id10001/video/00001.wav\nthree id10001/video/00002.wav\n")
    said = refusal(tmp_path / "out", {"sid": runs["sid"]}, {"sid": split_file})
    assert f"{split_file} has lines that are not" in said and "line 2 ('three id10001" in said


# Tasks other than SID, KS and ER


@pytest.fixture
def other_runs(given, tmp_path):
    """A run of each task, with the files that s3prl's experts write for the synthetic test sets."""
    h5py = pytest.importorskip("h5py")
    folders = {name: tmp_path / name for name in (*PLACES, "se", "ss")}
    for name, folder in folders.items():
        folder.mkdir()
        if name in PREDICTED:
            lines = [PREDICTED[name].format(utterance) for utterance in PREDICTIONS[name].find_test_set(given[name])]
            (folder / SUBMIT[name][0]).write_text("".join(f"{line}\n" for line in lines))
        elif name in ("se", "ss"):
            (folder / "test_metrics.txt").write_text(METRICS)
    queries, documents = PREDICTIONS["qbe"].find_test_set(given["qbe"])
    (folders["qbe"] / "benchmark.stdlist.xml").write_text(stdlist(queries, documents))
    (folders["sd"] / "scoring" / "predictions").mkdir(parents=True)
    (folders["sd"] / "frame_shift").write_text("320\n")
    for mixture in PREDICTIONS["sd"].find_test_set(given["sd"]):
        with h5py.File(folders["sd"] / "scoring" / "predictions" / f"{mixture}.h5", "w") as file:
            file["T_hat"] = np.full((50, 2), 0.5, "float32")
    return folders


def stdlist(queries, documents):
    root = ElementTree.Element("stdlist", termlist_filename="benchmark.stdlist.xml", system_id="benchmark")
    for query in queries:
        terms = ElementTree.SubElement(root, "detected_termlist", termid=query)
        for document in documents:
            ElementTree.SubElement(terms, "term", file=document, score="-0.1234", decision="NO")
    return ElementTree.tostring(root, encoding="unicode")


def test_files_are_those_of_s3prls_submit():
    for name, (source, target) in SUBMIT.items():
        assert (PREDICTIONS[name].source, PREDICTIONS[name].target) == (source, target)
    assert set(PREDICTIONS) == {*SUBMIT, "sd"}


def test_the_zip_holds_the_files_of_the_other_tasks(other_runs, given, tmp_path):
    submission = write_submission(tmp_path / "out", other_runs, given)
    with zipfile.ZipFile(submission.path) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    expected = {f"predict/{dict(asv='sv').get(name, name)}_public/{SUBMIT[name][1]}":
                (run / SUBMIT[name][0]).read_bytes()
                for name, run in other_runs.items() if name != "sd"}
    for path in (other_runs["sd"] / "scoring" / "predictions").iterdir():
        expected[f"predict/sd_public/scoring/predictions/{path.name}"] = path.read_bytes()
    expected["predict/sd_public/frame_shift"] = b"320\n"
    assert found == expected
    assert submission.predictions == {
        "pr": 4, "asr": 4, "asr_lm": 4, "sf": 4, "ic": 4, "asv": 6, "sd": 4, "qbe": 4, "se": 3, "ss": 3}
    assert "Not included, and so not scored: sid, er, ks." in str(submission)
    assert str(submission).count("because the file names no utterances") == 2
    assert "st, speech translation" in str(submission)


def test_s3prl_writes_what_is_taken(given, corpora, tmp_path):
    """s3prl's own experts write their line-based files from records, as after a forward pass."""
    for package in ("librosa", "pandas", "editdistance", "sklearn"):
        pytest.importorskip(package)
    from collections import defaultdict
    from types import SimpleNamespace

    import torch

    from ssamba_upstream.plugin import compat

    compat.apply()
    from s3prl.downstream.ctc.expert import DownstreamExpert as Ctc
    from s3prl.downstream.fluent_commands.expert import DownstreamExpert as FluentCommands

    logger = SimpleNamespace(add_scalar=lambda *args, **kwargs: None)
    names = {name: list(PREDICTIONS[name].find_test_set(given[name])) for name in ("ic", "pr")}
    for name in names:
        (tmp_path / name).mkdir()
    records = defaultdict(list, filename=names["ic"], predict=[("bring", "juice", "none")] * 4,
                          truth=[("bring", "juice", "none")] * 4, acc=[1.0], intent_loss=[0.0])
    FluentCommands.log_records(SimpleNamespace(expdir=tmp_path / "ic"), "test", records, logger, 0)
    records = defaultdict(list, filename=names["pr"], hypothesis=["AH0 T", "", "D", "D"], groundtruth=["AH0 T"] * 4,
                          loss=[1.0])
    expert = SimpleNamespace(expdir=tmp_path / "pr", metrics=["per"], save_best_on=["dev"], best_score=torch.ones(1),
                             metric_higher_better=False, _get_task_name=lambda: "ctc")
    Ctc.log_records.__wrapped__(expert, "test", records, logger, 0)  # s3prl's own; there is no loss to average
    submission = write_submission(tmp_path / "out", {name: tmp_path / name for name in names}, given)
    assert submission.predictions == {"pr": 4, "ic": 4}


OTHER_DAMAGES = {  # task: damage to its text, text of the message
    "pr": (lambda text: text.replace("AH0", "AH9", 1), "line 1: AH9 is not in the vocabulary"),
    "asr": (lambda text: text.replace("DOG", "dog", 1), "line 1: \"IT'S A dog\" is not a transcript in capitals"),
    "asr_lm": (lambda text: text.replace(" ", "", 1), "line 1: '21-7-0000' is not '<utterance> <transcript>'"),
    "sf": (lambda text: text.replace("STOP", "ST{P", 1), "line 1"),
    "ic": (lambda text: text.replace("washroom", "attic", 1), "the location attic is not one of bedroom, kitchen"),
    "asv": (lambda text: text.replace("-0.25", "nan", 1), "line 1: the score nan is not a finite number"),
    "se": (lambda text: text.replace("stoi", "pesq"), "stoi occurs 0 times"),
    "ss": (lambda text: text.replace("8.5", "inf"), "line 1: 'si_sdr inf' is not '<si_sdr|stoi|pesq> <number>'"),
}


@pytest.mark.parametrize("name", OTHER_DAMAGES)
def test_refuses_damaged_predictions(name, other_runs, given, tmp_path):
    damage, message = OTHER_DAMAGES[name]
    path = other_runs[name] / SUBMIT[name][0]
    path.write_text(damage(path.read_text()))
    found = refusal(tmp_path / "out", {name: other_runs[name]}, given)
    assert f"{name}: {path}" in found and message in found


@pytest.mark.parametrize("name", PREDICTED)
def test_refuses_missing_and_unknown_utterances(name, other_runs, given, tmp_path):
    path = other_runs[name] / SUBMIT[name][0]
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1:]))
    assert "1 of the" in refusal(tmp_path / "out", {name: other_runs[name]}, given)
    path.write_text("".join([*lines, lines[0]]))
    assert "is already in line 1" in refusal(tmp_path / "out", {name: other_runs[name]}, given)
    path.write_text("".join([*lines, PREDICTED[name].format("nobody") + "\n"]))
    assert "nobody is not in the test set" in refusal(tmp_path / "out", {name: other_runs[name]}, given)
    path.unlink()
    assert f"has no {path.name}" in refusal(tmp_path / "out", {name: other_runs[name]}, given)


UTTERANCES = {
    "pr": ("6930-75918-{:04d}", 2620), "sf": ("Brian-snips-test-{}", 2800),
    "ic": ("{:08x}-4474-11e9-a9a5-5dbec3b8816a", 3793),
    "asv": ("id10270-x6uYqmx31kE-00001_id10300-ize_eiC-Eg0-{:05d}", 37720),
}


@pytest.mark.parametrize("name", UTTERANCES)
def test_without_corpora_form_and_number_are_checked(name, tmp_path):
    utterance, count = UTTERANCES[name]
    path = tmp_path / "run" / SUBMIT[name][0]
    path.parent.mkdir()
    lines = [PREDICTED[name].format(utterance.format(number)) + "\n" for number in range(count)]
    path.write_text("".join(lines))
    submission = write_submission(tmp_path / "out.zip", {name: path.parent})
    assert submission.predictions == {name: count} and "Not checked" in submission.checks[name]
    path.write_text("".join(lines[1:]))
    assert f"the released test set has {count:,}; add --{name}-corpus" in refusal(tmp_path / "out", {name: path.parent})
    path.write_text("".join([*lines[1:], PREDICTED[name].format("nobody") + "\n"]))
    assert "nobody does not match the names" in refusal(tmp_path / "out", {name: path.parent})


def test_detected_terms(other_runs, given, tmp_path):
    path = other_runs["qbe"] / "benchmark.stdlist.xml"
    text = path.read_text()
    queries, documents = PREDICTIONS["qbe"].find_test_set(given["qbe"])
    run = {"qbe": other_runs["qbe"]}
    assert write_submission(tmp_path / "out.zip", run).checks["qbe"].startswith("Every query has a score for every")
    for damaged, message in (
        (stdlist(queries[1:], documents), f"1 of 4 are missing as a query: {queries[0]}"),
        (stdlist([*queries, "other"], documents), "other is not a query of the test set"),
        (stdlist(queries, documents[1:]), f"1 of 12 are missing as a document for {queries[0]}: {documents[0]}"),
        (stdlist(queries, [*documents, documents[0]]), f"{documents[0]} occurs 2 times as a document"),
        (text.replace("-0.1234", "high", 1), f"{queries[0]}, {documents[0]}: expected a score"),
        (text.replace('"NO"', '"MAYBE"', 1), f"{queries[0]}, {documents[0]}: expected a score"),
        (text[:-5], "not valid XML"), ("<stdlist />", "found a stdlist without them"),
    ):
        path.write_text(damaged)
        assert message in refusal(tmp_path / "out", run, given)
    path.write_text(stdlist([query.replace("eval", "dev") for query in queries], documents))
    assert "is a dev query; evaluate with -t test" in refusal(tmp_path / "out", run)


def test_speaker_activities(other_runs, given, tmp_path):
    import h5py

    run, folder = {"sd": other_runs["sd"]}, other_runs["sd"] / "scoring" / "predictions"
    assert "contains 4 mixtures, but the released test set has 3,000; add --sd-corpus" in refusal(tmp_path / "out", run)
    path = sorted(folder.glob("*.h5"))[0]
    content = path.read_bytes()
    for name, values in (
        ("T_hat", np.full((50, 3), 0.5)), ("T_hat", np.full((50, 2), 1.5)), ("other", np.zeros((50, 2))),
    ):
        with h5py.File(path, "w") as file:
            file[name] = values
        assert str(path) in refusal(tmp_path / "out", run, given)
    path.write_bytes(content[:100])
    assert "cannot be read as HDF5" in refusal(tmp_path / "out", run, given)
    path.rename(folder / "other.h5")
    (folder / "other.h5").write_bytes(content)
    message = refusal(tmp_path / "out", run, given)
    assert "other is not a mixture" in message and f"as a mixture: {path.stem}" in message
    (folder / "other.h5").rename(path)
    (other_runs["sd"] / "frame_shift").unlink()
    assert "frame_shift: expected the hop in samples" in refusal(tmp_path / "out", run, given)
    for file in folder.iterdir():
        file.unlink()
    assert "best-states-dev.ckpt" in refusal(tmp_path / "out", run, given)


def test_command(runs, other_runs, corpora, tmp_path, capsys):
    command = ["submit", "--out", str(tmp_path / "out")]
    for task, run in {**runs, **other_runs}.items():
        command += [f"--{task.replace('_', '-')}", str(run)]
    for option, corpus in {"sid": "VoxCeleb1", "ks": ".", "er": "IEMOCAP", **PLACES}.items():
        command += [] if option == "asr_lm" else [f"--{option}-corpus", str(corpora / corpus)]
    assert main(command) == 0
    assert f"wrote {tmp_path / 'out' / 'predict.zip'}" in capsys.readouterr().out
    assert main(["submit", "--out", str(tmp_path / "none"), "--ks", str(tmp_path / "nowhere")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("ssamba: ") and str(tmp_path / "nowhere") in error
