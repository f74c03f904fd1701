"""Checks of SUPERB's corpora and writers of their layouts, tested with s3prl's own code and with damaged corpora."""

import importlib.util
import json
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from helpers.paths import SHARED_AUDIO
from ssamba_upstream.cli import main
from ssamba_upstream.corpora import report
from ssamba_upstream.corpora.report import CorpusError
from ssamba_upstream.corpora.superb.fluent_speech_commands import check as check_intent_classification, read_list
from ssamba_upstream.corpora.superb.fsdd import COMMAND_SLOTS, JOINED, LEXICON, arrange_fsdd, join_fsdd
from ssamba_upstream.corpora.superb.iemocap import (
    EMOTIONS,
    SESSIONS,
    build_emotion_metadata,
    check as check_emotion,
    write_iemocap,
)
from ssamba_upstream.corpora.superb.librispeech import SPLITS, check_phone_recognition
from ssamba_upstream.corpora.superb.speech_commands import (
    CLASSES,
    KEYWORDS,
    check as check_keyword_spotting,
    hash_split,
    write_speech_commands,
)
from ssamba_upstream.corpora.superb.utterances import Utterance
from ssamba_upstream.corpora.superb.voxceleb1 import check as check_speaker_identification, write_voxceleb1
from ssamba_upstream.corpora.synthetic.corpora import synthesise_corpora

FSDD = SHARED_AUDIO / "fsdd" / "recordings"
TRAIN_SPEAKER, DEV_SPEAKER, DISCARDED_SPEAKER = "4a294341", "026290a7", "0c40e715"


def noise(seconds=0.1, seed=0):
    return 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * 16000))


@pytest.fixture
def commands(tmp_path):
    train = [Utterance(noise(), word, speaker) for word in (*KEYWORDS, "bed")
             for speaker in (TRAIN_SPEAKER, DEV_SPEAKER, DISCARDED_SPEAKER)]
    test = [Utterance(noise(), name, DISCARDED_SPEAKER, split="test") for name in CLASSES]
    write_speech_commands(tmp_path / "commands", train + test, {"hum": noise(1.0), "hiss": noise(1.5)})
    return tmp_path / "commands"


@pytest.fixture
def voxceleb1(tmp_path):
    utterances = [Utterance(noise(), f"id{10000 + speaker}", recording="video", split=split)
                  for speaker in (1, 2, 1251) for split in ("train", "train", "dev", "test")]
    write_voxceleb1(tmp_path / "VoxCeleb1", utterances)
    return tmp_path / "VoxCeleb1"


@pytest.fixture
def iemocap(tmp_path):
    utterances = [Utterance(noise(), label, f"Ses{session:02d}{sex}", recording)
                  for session in range(1, 6) for sex in "FM" for recording in ("script01", "impro01")
                  for label in ("neu", "exc", "fru", "hap", "ang", "xxx", "sad")]
    write_iemocap(tmp_path / "IEMOCAP", utterances)
    return tmp_path / "IEMOCAP"


def assert_problem(report, *fragments, others=0):
    """Assert that exactly one problem contains all fragments, next to ``others``, and that all are whole sentences."""
    matching = [problem for problem in report.problems if all(fragment in problem for fragment in fragments)]
    assert len(matching) == 1 and len(report.problems) == 1 + others, report.problems
    assert all(problem.endswith(".") for problem in report.problems)
    assert not report.ok and "Problem: " in str(report) and "Run with" not in str(report)


def rewrite(path, samples=None, rate=16000):
    soundfile.write(path, noise() if samples is None else samples, rate, subtype="PCM_16")


# Whole corpora


def test_small_corpora_are_ready(commands, voxceleb1, iemocap):
    report = check_keyword_spotting(commands)
    assert report.ok and "Run with: -o " in str(report)
    assert report.counts["train"] == dict.fromkeys(KEYWORDS, 1) | {"_unknown_": 1, "_silence_": 2}
    assert report.counts["dev"] == report.counts["train"]
    assert report.counts["test"] == dict.fromkeys(CLASSES, 1)
    apart = check_keyword_spotting(commands / "speech_commands_v0.01",
                                   commands / "speech_commands_test_set_v0.01")
    assert apart.ok and apart.counts == report.counts and apart.override == report.override

    report = check_speaker_identification(voxceleb1)
    assert report.ok and report.counts == {"train": {"utterances": 6, "speakers": 3},
                                           "dev": {"utterances": 3, "speakers": 3},
                                           "test": {"utterances": 3, "speakers": 3}}
    (voxceleb1 / "veri_test_class.txt").rename(voxceleb1 / "iden_split.txt")
    assert check_speaker_identification(voxceleb1).ok

    report = check_emotion(iemocap)
    assert report.ok and report.counts == dict.fromkeys(SESSIONS, {"neu": 4, "hap": 8, "ang": 4, "sad": 4})


@pytest.mark.slow
def test_synthetic_corpora_are_ready(synthetic):
    report = check_keyword_spotting(synthetic)
    assert report.ok, report
    assert report.counts["train"] == dict.fromkeys(CLASSES, 60) | {"_silence_": 3}
    assert report.counts["dev"] == dict.fromkeys(CLASSES, 12) | {"_silence_": 3}
    assert report.counts["test"] == dict.fromkeys(CLASSES, 12)
    report = check_speaker_identification(synthetic / "VoxCeleb1")
    assert report.ok, report
    assert report.counts["train"] == {"utterances": 120, "speakers": 10}
    report = check_emotion(synthetic / "IEMOCAP")
    assert report.ok, report
    assert report.counts == dict.fromkeys(SESSIONS, dict.fromkeys(EMOTIONS, 10))


@pytest.mark.slow
def test_synthetic_corpora_are_equal_for_equal_seeds(synthetic, tmp_path):
    synthesise_corpora(tmp_path / "again")
    paths = sorted(path.relative_to(synthetic) for path in synthetic.rglob("*") if path.is_file())
    assert len(paths) > 1300
    assert paths == sorted(path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*")
                           if path.is_file())
    for path in paths:
        again = (tmp_path / "again" / path).read_bytes().replace(bytes(tmp_path / "again"), bytes(synthetic))
        assert (synthetic / path).read_bytes() == again, path


@pytest.mark.slow
def test_s3prl_reads_the_layouts(synthetic):
    pytest.importorskip("librosa")
    from ssamba_upstream.plugin import compat

    compat.apply()
    from s3prl.downstream.emotion.dataset import IEMOCAPDataset
    from s3prl.downstream.speech_commands import dataset as speech_commands
    from s3prl.downstream.speech_commands.expert import split_dataset
    from s3prl.downstream.voxceleb1.dataset import SpeakerClassifiDataset

    report = check_keyword_spotting(synthetic)
    datarc = override(report)
    datasets = [speech_commands.SpeechCommandsDataset(files, **datarc)
                for files in split_dataset(datarc["speech_commands_root"])]
    datasets.append(speech_commands.SpeechCommandsTestingDataset(**datarc))
    assert list(CLASSES) == speech_commands.CLASSES
    for dataset, counts in zip(datasets, report.counts.values()):
        names = [name for name, _ in dataset.data]
        assert {name: names.count(name) for name in CLASSES} == counts
        samples, label, _ = dataset[len(dataset) - 1]
        assert samples.shape == (16000,) and CLASSES[label] == names[-1]

    report = check_speaker_identification(synthetic / "VoxCeleb1")
    datarc = override(report)
    for split, counts in report.counts.items():
        dataset = SpeakerClassifiDataset(split, Path(datarc["file_path"]), datarc["meta_data"])
        assert len(dataset) == counts["utterances"] and set(dataset.label) == set(range(10))
        samples, label, name = dataset[0]
        assert samples.ndim == 1 and samples.dtype == np.float32
        assert name.startswith(f"id{10001 + label}-video")

    datarc = override(check_emotion(synthetic / "IEMOCAP"))
    for split, count in ("train", 160), ("test", 40):
        path = Path(datarc["meta_data"], "Session2", f"{split}_meta_data.json")
        dataset = IEMOCAPDataset(datarc["root"], path, pre_load=False)
        assert len(dataset) == count and dataset.class_dict == EMOTIONS
        samples, label, name = dataset[0]
        assert samples.ndim == 1 and label in range(4) and name.startswith("Ses0")


def override(report):
    from s3prl.utility.helper import override

    config = {}
    override(report.override, Namespace(), config)
    return config["downstream_expert"]["datarc"]


def test_override_survives_any_path(commands):
    pytest.importorskip("librosa")
    from ssamba_upstream.plugin import compat

    compat.apply()
    strange = commands.with_name("it's a=b,, 'c'")
    commands.rename(strange)
    assert override(check_keyword_spotting(strange)) == {
        "speech_commands_root": str(strange / "speech_commands_v0.01"),
        "speech_commands_test_root": str(strange / "speech_commands_test_set_v0.01")}


def test_hash_split_is_that_of_the_released_lists():
    for speaker in ("4a294341", "43f57297", "f9af823e", "9ff2d2f4", "651d108f"):
        assert hash_split(f"{speaker}_nohash_0.wav") == hash_split(f"{speaker}_nohash_3.wav") == "train"
    for speaker in ("026290a7", "060cd039", "099d52ad"):  # the first of validation_list.txt
        assert hash_split(f"{speaker}_nohash_0.wav") == "dev"
    for speaker in ("0c40e715", "0ea0e2f4"):  # the first of testing_list.txt
        assert hash_split(f"{speaker}_nohash_0.wav") == "discarded"


def test_input_errors_become_problems(commands, voxceleb1, iemocap, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error", "broken.wav")

    monkeypatch.setattr(report, "read_header", fail)
    for check, root in ((check_keyword_spotting, commands), (check_speaker_identification, voxceleb1),
                        (check_emotion, iemocap)):
        assert_problem(check(root), "broken.wav cannot be read (Input/output error)")


# Speech Commands


def test_keyword_spotting_knows_its_versions(commands, monkeypatch):
    from ssamba_upstream.corpora.superb import speech_commands

    counts = {"train": 11, "dev": 11, "test": 12}
    report = check_keyword_spotting(commands)
    assert not report.released and "not the whole released corpus" in str(report)
    monkeypatch.setattr(speech_commands, "RELEASED", {"v0.01": counts, "v0.02": {}})
    report = check_keyword_spotting(commands)
    assert report.released and "The counts are those of the released corpus." in str(report)
    monkeypatch.setattr(speech_commands, "RELEASED", {"v0.01": {}, "v0.02": counts})
    report = check_keyword_spotting(commands)
    assert not report.released and "This is Speech Commands v0.02. SUPERB uses v0.01;" in str(report)
    assert "of the released corpus" not in str(report)


def test_keyword_spotting_reports_absent_classes(commands):
    train = commands / "speech_commands_v0.01"
    (train / "yes" / f"{DEV_SPEAKER}_nohash_0.wav").unlink()
    assert_problem(check_keyword_spotting(commands), "dev split", "of yes;")
    shutil.rmtree(train / "yes")
    report = check_keyword_spotting(commands)
    assert_problem(report, "train split", "of yes;", others=1)
    shutil.rmtree(train / "bed")
    assert_problem(check_keyword_spotting(commands), "train split", "of yes, _unknown_;", others=1)
    shutil.rmtree(commands / "speech_commands_test_set_v0.01" / "_silence_")
    assert_problem(check_keyword_spotting(commands), "test split", "of _silence_;", others=2)
    shutil.rmtree(commands / "speech_commands_test_set_v0.01")
    assert_problem(check_keyword_spotting(commands), "test split", "of any class;", others=2)


def test_keyword_spotting_reports_an_empty_development_split(commands):
    for path in commands.rglob(f"{DEV_SPEAKER}*"):
        path.unlink()
    assert_problem(check_keyword_spotting(commands), "dev split", "yes, no, up", "hash of the file names")


def test_keyword_spotting_reports_background_noise(commands):
    folder = commands / "speech_commands_v0.01" / "_background_noise_"
    rewrite(folder / "hum.wav", noise(0.999))
    assert_problem(check_keyword_spotting(commands), "hum.wav", "lasts 1.00 s")
    rewrite(folder / "hum.wav", noise(0.5), rate=8000)
    assert check_keyword_spotting(commands).ok
    (folder / "hum.wav").write_text("no audio")
    assert_problem(check_keyword_spotting(commands), "hum.wav", "cannot be read as audio")
    shutil.rmtree(folder)
    assert_problem(check_keyword_spotting(commands), "train split", "of _silence_;", others=1)


def test_keyword_spotting_reports_what_s3prl_stops_at(commands):
    foreign = commands / "speech_commands_test_set_v0.01" / "bed"
    shutil.copytree(commands / "speech_commands_v0.01" / "bed", foreign)
    assert_problem(check_keyword_spotting(commands), "(bed)", "not one of the twelve classes")
    shutil.rmtree(foreign)
    (commands / "speech_commands_v0.01" / "down" / f"{TRAIN_SPEAKER}_nohash_0.wav").write_text("")
    assert_problem(check_keyword_spotting(commands), "down", "cannot be read as audio")


# VoxCeleb1


def test_speaker_identification_reports_the_split_file(voxceleb1, tmp_path):
    split_file = voxceleb1 / "veri_test_class.txt"
    lines = split_file.read_text().splitlines(keepends=True)
    split_file.write_text("".join(line for line in lines if line[0] != "2"))
    assert_problem(check_speaker_identification(voxceleb1), "no utterances for dev")
    split_file.write_text("".join(lines) + "\n4 id10001/video/00001.wav\n")
    assert_problem(check_speaker_identification(voxceleb1), "line 13 (''), line 14 ('4 id10001")
    (voxceleb1 / "dev" / "wav" / "id10001").rename(voxceleb1 / "dev" / "wav" / "id11252")
    split_file.write_text("".join(lines).replace("id10001", "id11252"))
    assert_problem(check_speaker_identification(voxceleb1), "outside id10001 to id11251", ": id11252;")
    split_file.unlink()
    assert_problem(check_speaker_identification(voxceleb1), "cannot be read", "iden_split.txt")
    assert_problem(check_speaker_identification(voxceleb1, tmp_path), str(tmp_path), "cannot be read")


def test_speaker_identification_reports_missing_utterances(voxceleb1):
    (voxceleb1 / "dev" / "wav" / "id10002" / "video" / "00003.wav").unlink()
    report = check_speaker_identification(voxceleb1)
    assert_problem(report, "1 of the 12 utterances", ": id10002/video/00003.wav;")
    shutil.rmtree(voxceleb1 / "dev" / "wav" / "id10002")
    assert_problem(check_speaker_identification(voxceleb1), "4 of the 12 utterances", "00003.wav and 1 more;")
    (voxceleb1 / "dev" / "wav").rename(voxceleb1 / "wav")
    assert_problem(check_speaker_identification(voxceleb1), "contains no files", f"give {voxceleb1.parent}.")


@pytest.mark.parametrize("samples, rate, fragment", [
    (noise(), 8000, "8000 Hz and 1 channel"),
    (np.zeros((1600, 2)), 16000, "16000 Hz and 2 channel"),
    (np.zeros(0), 16000, "holds no samples"),
])
def test_speaker_identification_reports_audio(voxceleb1, samples, rate, fragment):
    rewrite(voxceleb1 / "dev" / "wav" / "id10002" / "video" / "00003.wav", samples, rate)
    assert_problem(check_speaker_identification(voxceleb1), "id10002/video/00003.wav", fragment)


# IEMOCAP


def test_emotion_metadata_equals_that_of_s3prls_script(iemocap, tmp_path):
    pytest.importorskip("librosa")
    labels = iemocap / "Session3" / "dialog" / "EmoEvaluation"
    (labels / "._Ses03F_impro01.txt").write_text("left by macOS")
    with open(labels / "Ses03F_script01.txt", "a") as label_file:
        label_file.write("[0.0 - 1.0]\tSes03F_script01_F099\tneu\t[3.0, 3.0, 3.0]\n")
    build_emotion_metadata(iemocap, tmp_path / "ours")
    shutil.rmtree(iemocap / "meta_data")
    s3prl = Path(importlib.util.find_spec("s3prl").origin).parent
    path = s3prl / "downstream" / "emotion" / "IEMOCAP_preprocess.py"
    spec = importlib.util.spec_from_file_location("iemocap_preprocess", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(str(iemocap))

    ours, theirs = ({path.relative_to(folder).as_posix(): json.loads(path.read_text())
                     for path in folder.rglob("*") if path.is_file()}
                    for folder in (tmp_path / "ours", iemocap / "meta_data"))
    assert ours.keys() == theirs.keys() and len(ours) == 10
    for name, content in ours.items():
        assert content["labels"] == theirs[name]["labels"]
        assert sorted(map(str, content["meta_data"])) == sorted(map(str, theirs[name]["meta_data"]))
    order = [entry["path"] for entry in ours["Session3/test_meta_data.json"]["meta_data"]]
    assert order == sorted(order) and len(order) == 20


def test_emotion_metadata_does_not_depend_on_the_order_of_files(iemocap, tmp_path, monkeypatch):
    def reversing(find):
        return lambda path, pattern: sorted(find(path, pattern), reverse=True)

    for method in ("glob", "rglob"):
        monkeypatch.setattr(Path, method, reversing(getattr(Path, method)))
    build_emotion_metadata(iemocap, tmp_path / "reversed")
    for session in SESSIONS:
        for name in "train_meta_data.json", "test_meta_data.json":
            before, after = iemocap / "meta_data" / session / name, tmp_path / "reversed" / session / name
            assert before.read_bytes() == after.read_bytes()


def test_emotion_reports_missing_parts(iemocap, tmp_path):
    labels = iemocap / "Session2" / "dialog" / "EmoEvaluation"
    label_file = labels / "Ses02F_impro01.txt"
    content = label_file.read_text()
    label_file.write_text("[0.0 - 1.0] Ses02F_impro01_F000 neu\n")
    assert_problem(check_emotion(iemocap), str(label_file), "line 1")
    label_file.write_text(content)
    for path in labels.glob("*.txt"):
        path.write_text(path.read_text().replace("\tsad\t", "\txxx\t"))
    assert_problem(check_emotion(iemocap), "Session2", "labelled sad")
    shutil.rmtree(iemocap / "Session2")
    report = check_emotion(iemocap)
    assert_problem(report, "Session2", "is missing", others=1)
    assert_problem(report, "Utterances in the metadata", "are not in", others=1)
    with pytest.raises(CorpusError, match="Session2"):
        build_emotion_metadata(iemocap, tmp_path / "metadata")
    assert not (tmp_path / "metadata").exists()


def test_emotion_reports_metadata(iemocap):
    metadata = iemocap / "meta_data"
    path = metadata / "Session4" / "train_meta_data.json"
    content = json.loads(path.read_text())

    def write(**changes):
        path.write_text(json.dumps(content | changes))

    write(meta_data=content["meta_data"][::-1])
    report = check_emotion(iemocap)
    assert report.ok and "order differs from" in str(report)
    write(meta_data=content["meta_data"] + [content["meta_data"][0] | {"path": "Session1/gone.wav"}])
    assert_problem(check_emotion(iemocap), "Utterances in the metadata", "Session1/gone.wav")
    write(meta_data=[])
    assert_problem(check_emotion(iemocap), str(path), "lists 0 utterances")
    write(labels={"neu": 1})
    assert_problem(check_emotion(iemocap), str(path), "{'neu': 1}")
    path.write_text("[]")
    assert_problem(check_emotion(iemocap), str(path), "not a JSON object")
    path.unlink()
    assert_problem(check_emotion(iemocap), str(path), "cannot be read", "ssamba corpora emotion-metadata")
    shutil.rmtree(metadata)
    assert_problem(check_emotion(iemocap), "metadata folder", "is missing", "ssamba corpora emotion-metadata")
    build_emotion_metadata(iemocap, metadata)
    assert check_emotion(iemocap).ok


def test_emotion_reports_folds_of_other_sessions(iemocap, monkeypatch):
    from ssamba_upstream.corpora.superb import iemocap as module

    monkeypatch.setattr(module, "RELEASED", {"neu": 20, "hap": 40, "ang": 20, "sad": 20})
    assert check_emotion(iemocap).released
    train, test = (iemocap / "meta_data" / "Session1" / f"{split}_meta_data.json" for split in ("train", "test"))
    content, before = json.loads(train.read_text()), test.read_text()
    train.write_text(json.dumps(content | {"meta_data": content["meta_data"][::-1]}))
    assert check_emotion(iemocap).released  # in another order
    content["meta_data"][0]["label"] = "sad"
    train.write_text(json.dumps(content))
    report = check_emotion(iemocap)
    assert report.ok and not report.released and "differ from IEMOCAP's label files" in str(report)
    test.write_text((iemocap / "meta_data" / "Session2" / "test_meta_data.json").read_text())
    assert_problem(check_emotion(iemocap), str(test), "20 utterances outside Session1")
    test.write_text(before)
    content["meta_data"] += json.loads(before)["meta_data"][:1]
    train.write_text(json.dumps(content))
    assert_problem(check_emotion(iemocap), str(train), "1 utterances of Session1, its test set")


def test_emotion_reports_audio(iemocap):
    path = iemocap / "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav"
    rewrite(path, rate=44100)
    assert_problem(check_emotion(iemocap), f"{path} at 44100 Hz", "at 16000 Hz", "have different sample rates")
    rewrite(path, np.zeros((1600, 2)))
    assert_problem(check_emotion(iemocap), str(path), "2 channels")


# Writing


def test_writers_refuse_a_folder_with_something_in_it(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="is not an empty folder"):
        synthesise_corpora(tmp_path)
    with pytest.raises(FileExistsError):
        write_voxceleb1(tmp_path, [])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_writers_leave_nothing_behind_when_interrupted(tmp_path):
    def utterances():
        yield Utterance(noise(), "yes", TRAIN_SPEAKER)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_speech_commands(tmp_path / "new" / "commands", utterances(), {})
    assert not any(path for path in tmp_path.rglob("*") if path.is_file() or path.name.endswith(".tmp"))


def test_writers_fill_an_empty_folder(tmp_path):
    write_voxceleb1(tmp_path, [Utterance(noise(), "id10001", recording="video")])
    assert (tmp_path / "veri_test_class.txt").read_text() == "1 id10001/video/00001.wav\n"


# The Free Spoken Digit Dataset


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The first twelve takes of each digit and speaker, arranged as two corpora."""
    if not FSDD.is_dir():
        pytest.skip(f"the Free Spoken Digit Dataset is not at {FSDD}")
    folder = tmp_path_factory.mktemp("digits")
    recordings = folder / "recordings"
    recordings.mkdir()
    for path in FSDD.glob("*.wav"):
        if int(path.stem.split("_")[2]) < 12:
            (recordings / path.name).symlink_to(path)
    arrange_fsdd(recordings, folder / "arranged")
    return recordings, folder / "arranged"


@pytest.mark.slow
def test_fsdd_as_speech_commands(digits):
    recordings, arranged = digits
    report = check_keyword_spotting(arranged)
    assert report.ok and "no utterances of _silence_, _unknown_ at all. The task has fewer classes" in report.notes[0]
    expected = dict.fromkeys(KEYWORDS, 30) | {"_unknown_": 0, "_silence_": 0}
    assert report.counts["test"] == expected
    training = [path for path in (arranged / "speech_commands_v0.01").rglob("*.wav")]
    assert len(training) == len({path.name for path in training}) == 420
    assert all(report.counts[split][word] for split in ("train", "dev") for word in KEYWORDS)
    assert not any(path.is_symlink() for path in arranged.rglob("*"))


@pytest.mark.slow
def test_fsdd_as_voxceleb1(digits):
    recordings, arranged = digits
    report = check_speaker_identification(arranged / "VoxCeleb1")
    assert report.ok, report
    assert report.counts == {"train": {"utterances": 120, "speakers": 6},
                             "dev": {"utterances": 300, "speakers": 6},
                             "test": {"utterances": 300, "speakers": 6}}
    # jackson is the second speaker alphabetically; recordings are identified by their lengths.
    splits = {}
    for line in (arranged / "VoxCeleb1" / "veri_test_class.txt").read_text().splitlines():
        split, name = line.split()
        if name.startswith("id10002/digit7/"):
            splits[soundfile.info(arranged / "VoxCeleb1" / "dev" / "wav" / name).frames] = split
    for take, split in (0, "3"), (4, "3"), (5, "2"), (9, "2"), (10, "1"), (11, "1"):
        assert splits[2 * soundfile.info(recordings / f"7_jackson_{take}.wav").frames] == split


def test_fsdd_is_resampled(digits):
    recordings, arranged = digits
    original, rate = soundfile.read(recordings / "0_george_10.wav")
    assert rate == 8000
    folder = arranged / "VoxCeleb1" / "dev" / "wav" / "id10001" / "digit0"
    candidates = [soundfile.read(path) for path in sorted(folder.glob("*.wav"))]
    assert {rate for _, rate in candidates} == {16000}
    error, nearest = min((np.abs(samples[::2] - original).max(), number) for number, (samples, _) in
                         enumerate(candidates) if len(samples) == 2 * len(original))
    assert error < 0.02 * np.abs(original).max()
    power = np.abs(np.fft.rfft(candidates[nearest][0])) ** 2
    assert power[len(power) * 53 // 100:].sum() < 1e-3 * power.sum()  # no aliases above the original 4 kHz


def test_fsdd_with_a_damaged_recording(tmp_path, capsys):
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    for name in ("0_ann_0", "1_ann_0", "1_bob_7", "1_bob_20"):
        soundfile.write(recordings / f"{name}.wav", noise(), 8000)
    (recordings / "1_ann_0.wav").write_bytes(b"no audio")
    assert main(["corpora", "fsdd", str(recordings), "--out", str(tmp_path / "arranged")]) == 1
    assert f"skipped: {recordings / '1_ann_0.wav'} cannot be read as audio: " in capsys.readouterr().err
    listed = (tmp_path / "arranged" / "VoxCeleb1" / "veri_test_class.txt").read_text().splitlines()
    assert [line.rpartition("/")[0] for line in sorted(listed)] == [
        "1 id10002/digit1", "2 id10002/digit1", "3 id10001/digit0"]
    for path in recordings.iterdir():
        path.write_bytes(b"no audio")
    with pytest.raises(CorpusError, match="none of 4 recordings can be read: .*0_ann_0.wav"):
        arrange_fsdd(recordings, tmp_path / "nothing")


def test_fsdd_needs_recordings(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no files"):
        arrange_fsdd(tmp_path, tmp_path / "out")


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """A stand-in for the dataset: takes 0, 5 and 10 of two speakers, each recording a different constant."""
    recordings = tmp_path_factory.mktemp("tones") / "recordings"
    recordings.mkdir()
    levels = {}
    for number, name in enumerate(f"{digit}_{speaker}_{take}" for speaker in ("ann", "bob") for take in (0, 5, 10)
                                  for digit in range(10)):
        levels[name] = (number + 1) / 100
        soundfile.write(recordings / f"{name}.wav", np.full(400, levels[name]), 16000)
    return recordings, levels


@pytest.fixture(scope="module")
def joined(tones, tmp_path_factory):
    out = tmp_path_factory.mktemp("joined") / "corpora"
    assert join_fsdd(tones[0], out) == []
    return out


def joined_recordings(path, levels):
    """Return (digit, speaker, take) of the three recordings in a file, identified by their constants."""
    samples, rate = soundfile.read(path)
    assert rate == 16000 and len(samples) == 3 * 400
    names = [min(levels, key=lambda name: abs(levels[name] - part.mean())) for part in np.split(samples, 3)]
    return list(zip(*(name.split("_") for name in names)))


@pytest.mark.slow
def test_joined_fsdd_as_fluent_speech_commands(tones, joined):
    root = joined / "fluent_speech_commands_dataset"
    report = check_intent_classification(root)
    assert report.ok, report
    assert {split: counts["utterances"] for split, counts in report.counts.items()} == JOINED
    assert report.counts["train"]["intents"] == 36
    for split, take in ("train", "10"), ("dev", "5"), ("test", "0"):
        for row in read_list(root, split):
            digits, speakers, takes = joined_recordings(root / row["path"], tones[1])
            assert [row["action"], row["object"], row["location"]] == [list(LEXICON)[int(d)].lower() for d in digits]
            assert all(int(digit) in slot for digit, slot in zip(digits, COMMAND_SLOTS))
            assert len(set(speakers)) == 1 and set(takes) == {take}


@pytest.mark.slow
def test_joined_fsdd_as_librispeech(tones, joined):
    root = joined / "LibriSpeech"
    report = check_phone_recognition(root)
    assert report.ok, report
    assert report.counts == {split: {"utterances": count, "words": 3 * count} for split, count in JOINED.items()}
    for split, take in ("train", "10"), ("dev", "5"), ("test", "0"):
        transcripts = {name: words for path in (root / SPLITS[split]).rglob("*.trans.txt")
                       for name, _, words in (line.partition(" ") for line in path.read_text().splitlines())}
        spoken = set()
        for path in (root / SPLITS[split]).rglob("*.flac"):
            digits, speakers, takes = joined_recordings(path, tones[1])
            assert transcripts[path.stem] == " ".join(list(LEXICON)[int(digit)] for digit in digits)
            assert set(speakers) == {("ann", "bob")[int(path.stem.split("-")[0]) - 1]} and set(takes) == {take}
            spoken.update(digits)
        assert len(spoken) == 10


def test_joined_fsdd_needs_every_digit_in_every_split(tones, tmp_path, capsys):
    recordings = tmp_path / "recordings"
    shutil.copytree(tones[0], recordings)
    (recordings / "7_bob_5.wav").write_bytes(b"no audio")
    assert main(["corpora", "fsdd-joined", str(recordings), "--out", str(tmp_path / "out")]) == 1
    assert "has no readable recording of bob saying 7 for dev" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
