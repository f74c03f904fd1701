"""predict.zip for tasks other than SID, KS and ER: the files that s3prl's submit.py expects; damaged ones refused."""

import zipfile
from xml.etree import ElementTree

import numpy as np
import pytest

from ssamba_upstream.cli import main
from ssamba_upstream.superb.predictions import SubmissionError
from ssamba_upstream.superb.submission import write_submission
from ssamba_upstream.superb.tasks import PREDICTIONS

pytestmark = pytest.mark.slow  # creating the corpora takes seconds

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


@pytest.fixture
def given(corpora):
    return {name: corpora / place for name, place in PLACES.items()}


@pytest.fixture
def runs(given, tmp_path):
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


def refusal(out, runs, corpora=None):
    with pytest.raises(SubmissionError) as refused:
        write_submission(out, runs, corpora)
    assert not out.exists()
    return str(refused.value)


def test_files_are_those_of_s3prls_submit():
    for name, (source, target) in SUBMIT.items():
        assert (PREDICTIONS[name].source, PREDICTIONS[name].target) == (source, target)
    assert set(PREDICTIONS) == {*SUBMIT, "sd"}


def test_the_zip_holds_what_s3prl_wrote(runs, given, tmp_path):
    submission = write_submission(tmp_path / "out", runs, given)
    with zipfile.ZipFile(submission.path) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    expected = {f"predict/{dict(asv='sv').get(name, name)}_public/{SUBMIT[name][1]}":
                (run / SUBMIT[name][0]).read_bytes()
                for name, run in runs.items() if name != "sd"}
    for path in (runs["sd"] / "scoring" / "predictions").iterdir():
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


DAMAGES = {  # task: damage to its text, text of the message
    "pr": (lambda text: text.replace("AH0", "AH9", 1), "line 1: AH9 is not in the vocabulary"),
    "asr": (lambda text: text.replace("DOG", "dog", 1), "line 1: \"IT'S A dog\" is not a transcript in capitals"),
    "asr_lm": (lambda text: text.replace(" ", "", 1), "line 1: '21-7-0000' is not '<utterance> <transcript>'"),
    "sf": (lambda text: text.replace("STOP", "ST{P", 1), "line 1"),
    "ic": (lambda text: text.replace("washroom", "attic", 1), "the location attic is not one of bedroom, kitchen"),
    "asv": (lambda text: text.replace("-0.25", "nan", 1), "line 1: the score nan is not a finite number"),
    "se": (lambda text: text.replace("stoi", "pesq"), "stoi occurs 0 times"),
    "ss": (lambda text: text.replace("8.5", "inf"), "line 1: 'si_sdr inf' is not '<si_sdr|stoi|pesq> <number>'"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_refuses_damaged_predictions(name, runs, given, tmp_path):
    damage, message = DAMAGES[name]
    path = runs[name] / SUBMIT[name][0]
    path.write_text(damage(path.read_text()))
    found = refusal(tmp_path / "out", {name: runs[name]}, given)
    assert f"{name}: {path}" in found and message in found


@pytest.mark.parametrize("name", PREDICTED)
def test_refuses_missing_and_unknown_utterances(name, runs, given, tmp_path):
    path = runs[name] / SUBMIT[name][0]
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1:]))
    assert "1 of the" in refusal(tmp_path / "out", {name: runs[name]}, given)
    path.write_text("".join([*lines, lines[0]]))
    assert "is already in line 1" in refusal(tmp_path / "out", {name: runs[name]}, given)
    path.write_text("".join([*lines, PREDICTED[name].format("nobody") + "\n"]))
    assert "nobody is not in the test set" in refusal(tmp_path / "out", {name: runs[name]}, given)
    path.unlink()
    assert f"has no {path.name}" in refusal(tmp_path / "out", {name: runs[name]}, given)


RELEASED = {
    "pr": ("6930-75918-{:04d}", 2620), "sf": ("Brian-snips-test-{}", 2800),
    "ic": ("{:08x}-4474-11e9-a9a5-5dbec3b8816a", 3793),
    "asv": ("id10270-x6uYqmx31kE-00001_id10300-ize_eiC-Eg0-{:05d}", 37720),
}


@pytest.mark.parametrize("name", RELEASED)
def test_without_corpora_form_and_number_are_checked(name, tmp_path):
    utterance, count = RELEASED[name]
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


def test_detected_terms(runs, given, tmp_path):
    path = runs["qbe"] / "benchmark.stdlist.xml"
    text = path.read_text()
    queries, documents = PREDICTIONS["qbe"].find_test_set(given["qbe"])
    run = {"qbe": runs["qbe"]}
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


def test_speaker_activities(runs, given, tmp_path):
    import h5py

    run, folder = {"sd": runs["sd"]}, runs["sd"] / "scoring" / "predictions"
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
    (runs["sd"] / "frame_shift").unlink()
    assert "frame_shift: expected the hop in samples" in refusal(tmp_path / "out", run, given)
    for file in folder.iterdir():
        file.unlink()
    assert "best-states-dev.ckpt" in refusal(tmp_path / "out", run, given)


def test_command(runs, corpora, tmp_path, capsys):
    command = ["submit", "--out", str(tmp_path / "out")]
    for name, run in runs.items():
        command += [f"--{name.replace('_', '-')}", str(run)]
    for name, place in PLACES.items():
        command += [f"--{name}-corpus", str(corpora / place)] if name != "asr_lm" else []
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert f"wrote {tmp_path / 'out' / 'predict.zip'}" in printed
    assert "Not included, and so not scored: sid, er, ks." in printed
