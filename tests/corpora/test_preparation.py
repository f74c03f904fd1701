"""``ssamba prepare``: from downloaded data sets to checked labelled sets."""

import csv
import itertools
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from helpers.paths import SHARED_AUDIO
from ssamba_upstream.audio import read_clip
from ssamba_upstream.cli import main
from ssamba_upstream.corpora import preparation
from ssamba_upstream.corpora.labelled import read_labelled, split_labels
from ssamba_upstream.corpora.preparation import SETS, PreparationError, prepare
from ssamba_upstream.corpora.scenes import mix_scenes
from ssamba_upstream.corpora.superb.fsdd import arrange_fsdd
from ssamba_upstream.corpora.superb.sets import read_superb
from ssamba_upstream.files import locked


def write_audio(path, samples=80, rate=16000):
    path.parent.mkdir(parents=True, exist_ok=True)
    format_ = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG"}[path.suffix]
    soundfile.write(path, 0.3 * np.sin(np.arange(samples)), rate, format=format_)


def write_table(path, columns, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as stream:
        csv.writer(stream).writerows([columns.split(","), *rows])


def members(out, folder):
    """Return {path relative to the folder: (label, split)} of a prepared set."""
    data = read_labelled(out)
    return {path.relative_to(folder).as_posix(): (label, split)
            for path, label, split in zip(data.paths, data.labels, data.splits)}


# ESC-50 and ESC-10

ESC50_COLUMNS = "filename,fold,target,category,esc10,src_file,take"


@pytest.fixture
def esc50(tmp_path):
    """ESC-50 with two of its fifty classes and three of its five folds."""
    root = tmp_path / "ESC-50-master"
    rows = [[f"{fold}-{clip}-A-{target}.wav", fold, target, category, "True", clip, "A"]
            for fold in (1, 2, 5) for clip, (target, category) in enumerate([(0, "dog"), (14, "chirping_birds")], 100)]
    write_table(root / "meta" / "esc50.csv", ESC50_COLUMNS, rows)
    for name, *_ in rows:
        write_audio(root / "audio" / name, rate=44100)
    write_audio(root / "audio" / "9-9-A-9.wav")  # not listed
    return root


def test_esc50(esc50, tmp_path):
    report = prepare("esc50", tmp_path, tmp_path / "new" / "esc50.csv")
    found = members(tmp_path / "new" / "esc50.csv", esc50 / "audio")
    assert len(found) == 6 and read_labelled(tmp_path / "new" / "esc50.csv").has_folds
    assert found["1-100-A-0.wav"] == ("dog", "1") and found["5-101-A-14.wav"] == ("chirping_birds", "5")
    assert report.counts == {"1": 2, "2": 2, "5": 2} and report.classes == 2
    assert report.notes == ["This is only part of the released set: 2 of 50 classes and 6 of 2,000 recordings."]
    prepare("esc50", esc50, esc50 / "set.csv")
    assert (esc50 / "set.csv").read_text().splitlines()[:2] == ["path,label,split", "audio/1-100-A-0.wav,dog,1"]
    shutil.move(esc50, tmp_path / "moved")
    assert members(tmp_path / "moved" / "set.csv", tmp_path / "moved" / "audio") == found


def test_the_whole_set_is_called_so(esc50, tmp_path, monkeypatch):
    whole = replace(preparation.SETS["esc50"], released={"1": 2, "2": 2, "5": 2}, classes=2)
    monkeypatch.setitem(preparation.SETS, "esc50", whole)
    assert prepare("esc50", esc50, tmp_path / "out.csv").notes == ["The counts are those of the released set."]
    monkeypatch.setitem(preparation.SETS, "esc50", replace(whole, classes=1))
    with pytest.raises(PreparationError, match="2 classes, but the released set has 1. Check that"):
        prepare("esc50", esc50, tmp_path / "out.csv")


def test_the_command(esc50, tmp_path, capsys):
    out = tmp_path / "esc50.csv"
    assert main(["prepare", "esc50", str(esc50), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"ESC-50 in {esc50}: 6 recordings, 2 classes\n  1       2\n")
    assert "Note: This is only part of the" in printed and printed.endswith(f"wrote {out}\n")
    assert main(["prepare", "esc50", str(tmp_path / "nowhere"), "--out", str(tmp_path / "other.csv")]) == 1
    error = capsys.readouterr().err
    assert f"ssamba: ESC-50 in {tmp_path / 'nowhere'}: no such folder\n" in error
    assert "https://github.com/karolpiczak/ESC-50" in error and "ROOT/meta/esc50.csv" in error
    assert main(["prepare", "esc50", str(esc50), "--out", str(tmp_path / "other.txt")]) == 1
    assert "other.txt: a labelled set's name must end in .csv" in capsys.readouterr().err
    assert not (tmp_path / "other.csv").exists()


@pytest.mark.parametrize("name", preparation.SETS)
def test_a_folder_of_something_else_gets_instructions(tmp_path, capsys, name):
    (tmp_path / "root").mkdir()
    write_audio(tmp_path / "root" / "music.wav")
    assert main(["prepare", name, str(tmp_path / "root"), "--out", str(tmp_path / "out.csv")]) == 1
    error = capsys.readouterr().err
    assert "ssamba: " in error and "http" in error and "ROOT/" in error and "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_what_is_missing_or_damaged_is_skipped_and_named(esc50, tmp_path, capsys):
    damaged = [esc50 / "audio" / name for name in ("1-100-A-0.wav", "2-100-A-0.wav", "5-100-A-0.wav")]
    damaged[0].unlink()
    damaged[1].write_bytes(b"RIFF, but nothing of the kind")
    soundfile.write(damaged[2], np.zeros(0), 44100)
    command = ["prepare", "esc50", str(esc50), "--out", str(tmp_path / "out.csv")]
    with pytest.raises(PreparationError, match="all 3 recordings are labelled 'chirping_birds'"):
        prepare("esc50", esc50, tmp_path / "out.csv")
    write_audio(damaged[2], rate=44100)
    assert main(command) == 1
    printed = capsys.readouterr()
    assert "4 recordings, 2 classes\n  1       1\n  2       1\n  5       2\n" in printed.out
    lines = [line for line in printed.err.splitlines() if line.startswith("skipped: ")]
    assert [line.split(" cannot be read as audio: ")[0] for line in lines] == [f"skipped: {p}" for p in damaged[:2]]
    assert len(members(tmp_path / "out.csv", esc50 / "audio")) == 4
    before = (tmp_path / "out.csv").read_text()
    for file in (esc50 / "audio").iterdir():
        file.write_bytes(b"")
    with pytest.raises(PreparationError, match="none of 6 recordings can be read: "):
        prepare("esc50", esc50, tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == before


@pytest.mark.parametrize("columns, rows, message", [
    (ESC50_COLUMNS, [], "no recording is listed"),
    ("filename,target", [["a.wav", 1]], "esc50.csv has the columns filename, target; expected filename, fold"),
    (ESC50_COLUMNS, [["1-100-A-0.wav", 1, 0, ""]], "esc50.csv, line 2: expected a value for each of filename, fold,"),
    (ESC50_COLUMNS, [["1-100-A-0.wav", 7, 0, "dog"]], "there are the splits 7; expected 1, 2, 3, 4, 5"),
    (ESC50_COLUMNS, [["1-100-A-0.wav", 1, 0, "dog"], ["2-101-A-14.wav", 2, 14, "chirping_birds"]],
     "the splits are 1, 2; expected"),
    (ESC50_COLUMNS, [["1-100-A-0.wav", fold, 0, name] for fold, name in ((1, "dog"), (2, "cat"), (3, "cow"))],
     "recordings are listed more than once: .*1-100-A-0.wav"),
])
def test_tables_that_do_not_fit(esc50, tmp_path, columns, rows, message):
    write_table(esc50 / "meta" / "esc50.csv", columns, rows)
    with pytest.raises(PreparationError, match=message):
        prepare("esc50", esc50, tmp_path / "out.csv")


def test_esc10(tmp_path):
    root = tmp_path / "esc10"
    for fold in (1, 2, 3):
        for label in ("001 - Dog bark", "Rain, light"):
            write_audio(root / label / f"{fold}-1000{fold}-B.ogg", samples=800, rate=44100)
    (root / "001 - Dog bark" / "._1-1-A.ogg").write_text("macOS leaves such files")
    report = prepare("esc50", root, tmp_path / "out.csv")
    assert members(tmp_path / "out.csv", root) == {
        f"{folder}/{fold}-1000{fold}-B.ogg": (label, str(fold)) for fold in (1, 2, 3)
        for folder, label in (("001 - Dog bark", "Dog bark"), ("Rain, light", "Rain, light"))}
    assert report.notes[1] == "The layout is that of ESC-10, with a folder for each class."
    write_audio(root / "Rain, light" / "bark.wav")
    with pytest.raises(PreparationError, match=r"not named \{fold\}-\{clip\}-\{take\}: Rain, light/bark.wav\n"):
        prepare("esc50", root, tmp_path / "out.csv")


def test_the_real_esc10(tmp_path):
    root = SHARED_AUDIO / "esc10"
    if not root.is_dir():
        pytest.skip("ESC-10 is not here (../shared/audio/esc10)")
    report = prepare("esc50", root, tmp_path / "out.csv")
    assert report.counts == dict.fromkeys("12345", 80) and report.classes == 10
    data = read_labelled(tmp_path / "out.csv")
    assert data.has_folds and "Sea waves" in data.classes
    assert all(path.name.startswith(fold) for path, fold in zip(data.paths, data.splits))


# Speech Commands


@pytest.fixture
def commands(tmp_path):
    """Speech Commands with three words."""
    root = tmp_path / "speech_commands_v0.01"
    for word in ("yes", "no", "bed"):
        for speaker in ("aa", "bb", "cc"):
            write_audio(root / word / f"{speaker}_nohash_0.wav")
    write_audio(root / "_background_noise_" / "white_noise.wav")
    (root / "validation_list.txt").write_text("yes/bb_nohash_0.wav\nno/bb_nohash_0.wav\nzero/bb_nohash_0.wav\n")
    (root / "testing_list.txt").write_text("bed/cc_nohash_0.wav\nyes/cc_nohash_0.wav\n")
    return root


@pytest.mark.parametrize("name, words", [("speech_commands_v1", 30), ("speech_commands_v2", 35)])
def test_speech_commands(commands, tmp_path, name, words):
    report = prepare(name, commands, tmp_path / "out.csv")
    found = members(tmp_path / "out.csv", commands)
    assert len(found) == 9 and report.counts == {"train": 5, "dev": 2, "test": 2}
    assert f"set: 3 of {words} classes" in report.notes[0] and len(report.notes) == 1
    assert found["yes/bb_nohash_0.wav"] == ("yes", "dev") and found["bed/cc_nohash_0.wav"] == ("bed", "test")
    assert found["no/cc_nohash_0.wav"] == ("no", "train")


def test_speech_commands_in_the_folder_of_its_archive(commands, tmp_path):
    assert prepare("speech_commands_v1", tmp_path, tmp_path / "out.csv").root == commands
    with pytest.raises(PreparationError, match=r"no folder with recordings.*\n\n(.*\n)*.*speech_commands_v0.02.tar.gz"):
        prepare("speech_commands_v2", tmp_path / "speech_commands_v0.01" / "yes", tmp_path / "out.csv")


def test_speech_commands_with_files_missing(commands, tmp_path):
    (commands / "yes" / "bb_nohash_0.wav").unlink()
    with pytest.raises(PreparationError, match="recordings in the two lists are missing: yes/bb_nohash_0.wav"):
        prepare("speech_commands_v1", commands, tmp_path / "out.csv")
    (commands / "testing_list.txt").unlink()
    with pytest.raises(PreparationError, match="testing_list.txt is missing"):
        prepare("speech_commands_v1", commands, tmp_path / "out.csv")


def test_the_second_version_is_no_first(commands, tmp_path):
    for number in range(28):
        write_audio(commands / f"word{number}" / "aa_nohash_0.wav")
    with pytest.raises(PreparationError, match="there are 31 classes, but the released set has 30. Check that"):
        prepare("speech_commands_v1", commands, tmp_path / "out.csv")
    assert prepare("speech_commands_v2", commands, tmp_path / "out.csv").classes == 31


def test_speech_commands_without_lists(commands, tmp_path):
    """The rule behind the released lists makes the splits, including a test set if no test set has the same words."""
    (commands / "validation_list.txt").unlink()
    (commands / "testing_list.txt").unlink()
    for number in range(40):
        write_audio(commands / "yes" / f"{number:08x}_nohash_0.wav")
    write_audio(tmp_path / "speech_commands_test_set_v0.01" / "_unknown_" / "aa_nohash_0.wav")
    report = prepare("speech_commands_v1", commands, tmp_path / "out.csv")
    assert "no lists of the splits" in report.notes[1] and "The test set is" not in report.notes[1]
    assert sum(report.counts.values()) == 49 and min(report.counts.values()) > 0


def test_the_digits_are_split_as_for_superb(tmp_path):
    recordings = tmp_path / "recordings"
    for digit in (0, 7):
        for speaker in ("ann", "bob"):
            for take in range(15):
                write_audio(recordings / f"{digit}_{speaker}_{take}.wav", samples=40 + take, rate=8000)
    arrange_fsdd(recordings, tmp_path / "digits")
    report = prepare("speech_commands_v1", tmp_path / "digits", tmp_path / "out.csv")
    found, superb = read_labelled(tmp_path / "out.csv"), read_superb("ks", tmp_path / "digits")
    assert report.counts["test"] == 20 and "The test set is" in report.notes[1]
    assert set(zip(found.paths, found.labels, found.splits)) == {
        (excerpt.path, label, split)
        for excerpt, label, split in zip(superb.paths, superb.labels, superb.splits)}


# AudioSet


@pytest.fixture
def audioset(tmp_path):
    """AudioSet's lists, with four classes, three training clips and two test clips; no audio yet."""
    root = tmp_path / "audioset"
    root.mkdir()
    (root / "class_labels_indices.csv").write_text(
        'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male speech, man speaking"\n'
        '2,/m/0ngt1,"Thunder"\n345,/m/08j51y,"Dental drill, dentist\'s drill"\n')
    (root / "balanced_train_segments.csv").write_text(
        "# Segments csv created Sun Mar  5 10:54:31 2017\n# num_ytids=3, num_segs=3\n"
        "# YTID, start_seconds, end_seconds, positive_labels\n"
        '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/m/05zppz"\n-0DdlOuIFUI, 0.000, 7.500, "/m/0ngt1"\n'
        'Yabcdefghi_, 420.000, 430.000, "/m/08j51y,/m/09x0r"\n')
    (root / "eval_segments.csv").write_text(
        "# Segments csv created\n# num_ytids=2\n# YTID, start_seconds, end_seconds, positive_labels\n"
        '_0123456789, 30.000, 40.000, "/m/0ngt1,/m/05zppz"\n4-abcdefghi, 6.000, 16.000, "/m/09x0r"\n')
    return root


TRAIN_CLIPS = ("--PJHxphWEs", "-0DdlOuIFUI", "Yabcdefghi_")


def add_clips(root, train=TRAIN_CLIPS, test=("_0123456789", "4-abcdefghi"), ending=".wav"):
    for split, names in (("bal_train", train), ("eval", test)):
        for name in names:
            write_audio(root / "audio" / split / f"{name}{ending}")


@pytest.mark.parametrize("ending", [".wav", ".flac"])
@pytest.mark.parametrize("names", [
    TRAIN_CLIPS,
    ("Y--PJHxphWEs", "Y-0DdlOuIFUI", "YYabcdefghi_"),
    ("--PJHxphWEs_30", "-0DdlOuIFUI_0", "Yabcdefghi__420"),
    ("--PJHxphWEs_30000", "-0DdlOuIFUI_0", "Yabcdefghi__420000"),
    ("--PJHxphWEs_30_40", "-0DdlOuIFUI_0_7.5", "Yabcdefghi__420_430"),
    ("--PJHxphWEs_30.0", "-0DdlOuIFUI_0.0_7.5", "YYabcdefghi__420.0_430.0"),
    ("--PJHxphWEs_30.000_40.000", "-0DdlOuIFUI_0.000_7.500", "Yabcdefghi__420.000_430.000"),
    ("Y--PJHxphWEs_30000_40000", "Y-0DdlOuIFUI_0_7500", "YYabcdefghi__420000_430000"),
])
def test_audioset_by_the_usual_names(audioset, tmp_path, names, ending):
    add_clips(audioset, names, ending=ending)
    report = prepare("audioset20k", audioset, tmp_path / "out.csv")
    found = members(tmp_path / "out.csv", audioset / "audio")
    assert found == {
        f"bal_train/{names[0]}{ending}": ("Speech;Male speech, man speaking", "train"),
        f"bal_train/{names[1]}{ending}": ("Thunder", "train"),
        f"bal_train/{names[2]}{ending}": ("Dental drill, dentist's drill;Speech", "train"),
        f"eval/_0123456789{ending}": ("Thunder;Male speech, man speaking", "test"),
        f"eval/4-abcdefghi{ending}": ("Speech", "test"),
    }
    assert report.counts == {"train": 3, "test": 2} and report.classes == 4
    assert report.notes == [
        "This is only part of the released set: 4 of 527 classes and 5 of 42,531 recordings.",
        "3 of the 3 clips in balanced_train_segments.csv were found.",
        "2 of the 2 clips in eval_segments.csv were found."]
    data = read_labelled(tmp_path / "out.csv")
    assert not data.has_folds
    assert {name for label in data.labels for name in split_labels(label)} == {
        "Speech", "Male speech, man speaking", "Thunder", "Dental drill, dentist's drill"}


def test_clips_of_another_part_of_a_video_are_not_taken(audioset, tmp_path):
    add_clips(audioset, train=["--PJHxphWEs_40", "-0DdlOuIFUI"])
    report = prepare("audioset20k", audioset, tmp_path / "out.csv")
    assert report.counts == {"train": 1, "test": 2}
    assert "1 of the 3 clips in balanced_train_segments.csv were found." in report.notes


def test_damaged_clips_are_skipped_and_reported(audioset, tmp_path):
    add_clips(audioset)
    (audioset / "audio" / "eval" / "4-abcdefghi.wav").write_bytes(b"<html>This video is private</html>")
    report = prepare("audioset20k", audioset, tmp_path / "out.csv")
    assert report.counts == {"train": 3, "test": 1}
    (sentence,) = report.unreadable
    assert sentence.startswith(f"{audioset / 'audio' / 'eval' / '4-abcdefghi.wav'} cannot be read as audio: ")


def test_no_clips_of_a_split(audioset, tmp_path):
    add_clips(audioset, test=[])
    with pytest.raises(PreparationError, match="the splits are train; expected train, dev and test, or train and test"):
        prepare("audioset20k", audioset, tmp_path / "out.csv")


@pytest.mark.parametrize("file, old, new, message", [
    ("eval_segments.csv", "/m/0ngt1,", "/m/xyz,", "eval_segments.csv, line 4: class_labels_indices.csv has no class /"),
    ("eval_segments.csv", '"/m/0ngt1,/m/05zppz"', "/m/0ngt1,/m/05zppz", "line 4: expected a YouTube id, .* got _01234"),
    ("eval_segments.csv", "6.000,", "six,", "line 5: expected a YouTube id, a start and an end in seconds"),
    ("class_labels_indices.csv", "Thunder", "Thunder; rain", "the class 'Thunder; rain' has a ';' in its name"),
    ("class_labels_indices.csv", "index,mid,display_name\n", "", "has the columns 0, /m/09x0r, Speech; expected mid"),
])
def test_lists_of_audioset_that_do_not_fit(audioset, tmp_path, file, old, new, message):
    add_clips(audioset)
    text = (audioset / file).read_text()
    assert old in text
    (audioset / file).write_text(text.replace(old, new, 1))
    with pytest.raises(PreparationError, match=message):
        prepare("audioset20k", audioset, tmp_path / "out.csv")


def test_audioset_without_lists_or_clips(audioset, tmp_path):
    with pytest.raises(PreparationError, match="no .wav, .flac, .*, .aifc file in"):
        prepare("audioset20k", audioset, tmp_path / "out.csv")
    write_audio(audioset / "audio" / "song.wav")
    with pytest.raises(PreparationError, match="none of 1 audio files is named like a clip in .*: audio/song"):
        prepare("audioset20k", audioset, tmp_path / "out.csv")
    for name in ("eval_segments.csv", "class_labels_indices.csv"):
        (audioset / name).unlink()
        with pytest.raises(PreparationError, match=f"{name} is missing\n\nAudioSet's lists are at https"):
            prepare("audioset20k", audioset, tmp_path / "out.csv")


# UrbanSound8K

TONES = {"air_conditioner": 300, "dog_bark": 900, "siren": 2200, "street_music": 3100}
FORMATS = [(44100, "PCM_16", 2), (48000, "PCM_24", 2), (96000, "PCM_24", 1), (8000, "PCM_16", 1), (11025, "PCM_U8", 2),
           (44100, "FLOAT", 1), (22050, "MS_ADPCM", 1)]


def write_tone(path, label, seconds, rate=16000, subtype="PCM_16", channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    tone = 0.4 * np.sin(2 * np.pi * TONES[label] * time)
    soundfile.write(path, np.stack([tone, 0.5 * tone][:channels], axis=1), rate, subtype=subtype)


@pytest.fixture(scope="module")
def urban(tmp_path_factory):
    """UrbanSound8K with three folds and four classes, each a different tone."""
    root = tmp_path_factory.mktemp("urban") / "UrbanSound8K"
    random, rows = np.random.default_rng(0), []
    for fold, count in ((1, 45), (2, 25), (10, 30)):
        for number in range(count):
            label = list(TONES)[number % len(TONES)]
            seconds = (4.0, 4.03, 0.05, random.uniform(0.3, 4))[0 if number < 16 else random.integers(4)]
            name = f"{1000 * fold + number}-{number % len(TONES)}-0-0.wav"
            write_tone(root / "audio" / f"fold{fold}" / name, label, seconds, *FORMATS[number % len(FORMATS)])
            rows.append([name, 1000 * fold + number, 0, seconds, 1, fold, number % len(TONES), label])
    columns = "slice_file_name,fsID,start,end,salience,fold,classID,class"
    write_table(root / "metadata" / "UrbanSound8K.csv", columns, rows)
    return root


def loudest_frequency(second):
    return np.abs(np.fft.rfft(second * np.hanning(len(second)))).argmax()


def seconds_of(root, fold):
    """Return the whole seconds of a fold's excerpts, ignoring excerpts under a tenth of a second."""
    found = [soundfile.info(path).duration for path in (root / "audio" / fold).glob("*.wav")]
    return sum(max(1, int(np.ceil(duration - 0.1))) for duration in found)


@pytest.mark.slow
def test_every_second_of_a_scene_sounds_as_it_is_labelled(urban, tmp_path):
    report = prepare("urban8k_scenes", urban.parent, tmp_path / "scenes.csv")
    data = read_labelled(tmp_path / "scenes.csv")
    assert report.counts == {"fold1": 45, "fold2": 25, "fold10": 30} and report.classes == 4
    expected = {fold: seconds_of(urban, fold) // 60 for fold in report.counts}
    assert {fold: data.splits.count(fold) for fold in expected} == expected and min(expected.values()) > 0
    assert data.has_folds and expected["fold1"] > 1
    assert report.notes[1] == (f"They form {len(data.paths)} scenes of 60 s: {expected['fold1']} of fold1, "
                               f"{expected['fold2']} of fold2, {expected['fold10']} of fold10.")
    assert (tmp_path / "scenes.csv").read_text().splitlines()[1].startswith("scenes/fold1_000.flac,")
    for path, label, fold in zip(data.paths, data.labels, data.splits):
        samples, rate = soundfile.read(path)
        assert (rate, samples.shape, soundfile.info(path).subtype) == (16000, (60 * 16000,), "PCM_16")
        assert path.parent == tmp_path / "scenes" and path.name.startswith(f"{fold}_")
        classes = split_labels(label)
        assert len(classes) == 60 and len(set(classes)) == len(TONES)
        for second, name in zip(samples.reshape(60, 16000), classes):
            assert np.abs(second).max() > 0.05
            assert loudest_frequency(second) == pytest.approx(TONES[name], abs=15)


def test_every_excerpt_is_there_once_and_whole(urban, tmp_path):
    """Only the end of the last scene cuts an excerpt. An excerpt of 0.05 s fills a second, and 4.03 s fill four."""
    excerpts = {path.stem: path for path in (urban / "audio" / "fold1").glob("*.wav")}
    scenes = mix_scenes([(path, stem, "fold1") for stem, path in excerpts.items()], tmp_path / "scenes", pytest.fail)
    samples = np.concatenate([soundfile.read(path)[0] for path, _, _ in scenes])
    runs = [(stem, len([*run])) for stem, run in itertools.groupby(
        stem for _, label, _ in scenes for stem in split_labels(label))]
    assert len({stem for stem, _ in runs}) == len(runs) and sum(seconds for _, seconds in runs) == 60 * len(scenes)
    for stem, seconds in runs:
        duration = soundfile.info(excerpts[stem]).duration
        assert seconds == max(1, np.ceil(duration - 0.1)) or stem == runs[-1][0]
        piece, samples = samples[:seconds * 16000], samples[seconds * 16000:]
        clip = read_clip(excerpts[stem]).numpy()[:len(piece)]
        assert np.abs(piece[:len(clip)] - clip).max() <= 0.51 / 2**15 and not piece[len(clip):].any()


def test_the_mix_is_the_same_whatever_the_order(urban, tmp_path):
    excerpts = [(path, path.stem, "fold2") for path in sorted((urban / "audio" / "fold2").glob("*.wav"))]
    first = mix_scenes(excerpts, tmp_path / "a", pytest.fail)
    again = mix_scenes(excerpts[::-1], tmp_path / "b", pytest.fail)
    assert [label for _, label, _ in first] == [label for _, label, _ in again]
    assert [path.read_bytes() for path, _, _ in first] == [path.read_bytes() for path, _, _ in again]


@pytest.mark.slow
def test_a_second_call_writes_only_what_is_wrong(urban, tmp_path):
    out = tmp_path / "scenes.csv"
    prepare("urban8k_scenes", urban, out)
    content, paths = out.read_bytes(), sorted((tmp_path / "scenes").iterdir())
    right = {path: path.read_bytes() for path in paths}
    damaged, other, lost = paths[:3]
    damaged.write_bytes(right[damaged][:5000])
    other.write_bytes(right[damaged])
    lost.unlink()
    before = {path: path.stat().st_mtime_ns for path in paths[3:]}
    prepare("urban8k_scenes", urban, out)
    assert before and {path: path.stat().st_mtime_ns for path in paths[3:]} == before
    assert {path: path.read_bytes() for path in sorted((tmp_path / "scenes").iterdir())} == right
    assert out.read_bytes() == content


def test_labels_do_not_outlive_their_scenes(urban, tmp_path, monkeypatch, capsys):
    """Interrupts a run while it writes other scenes, and runs two processes at once."""
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    out = tmp_path / "scenes.csv"
    out.write_text("path,label,split\nscenes/fold1_000.flac,siren,fold1\n")
    with locked(out):
        assert main(["prepare", "urban8k_scenes", str(urban), "--out", str(out)]) == 1
    assert "another process is writing" in capsys.readouterr().err and out.exists()
    monkeypatch.setattr(preparation, "mix_scenes", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare("urban8k_scenes", urban, out)
    assert not list(tmp_path.glob("*scenes*"))


def test_urban_sound_that_cannot_be_mixed(urban, tmp_path):
    root = tmp_path / "UrbanSound8K"
    shutil.copytree(urban, root)
    for path in sorted((root / "audio" / "fold10").glob("*.wav")):
        write_tone(path, "siren", 1)
    with pytest.raises(PreparationError, match="the 30 excerpts of fold10 last less than one scene of 60 s"):
        prepare("urban8k_scenes", root, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_damaged_excerpts_are_in_no_scene(urban, tmp_path):
    """This includes damage that the header does not show."""
    root = tmp_path / "UrbanSound8K"
    shutil.copytree(urban, root)
    damaged, missing = (root / "audio" / "fold1" / name for name in ("1000-0-0-0.wav", "1001-1-0-0.wav"))
    soundfile.write(damaged, np.full(100, np.nan), 16000, subtype="FLOAT")
    missing.unlink()
    report = prepare("urban8k_scenes", root, tmp_path / "out.csv")
    assert [sentence.split(" cannot be read as audio: ")[0] for sentence in report.unreadable] == [
        str(missing), str(damaged)]
    without = [(path, label, fold) for path, label, fold in SETS["urban8k_scenes"].read(root)[0]
               if path not in (damaged, missing)]
    expected = mix_scenes(without, tmp_path / "expected", pytest.fail)
    data = read_labelled(tmp_path / "out.csv")
    assert data.labels == [label for _, label, _ in expected]
    assert [p.read_bytes() for p in data.paths] == [p.read_bytes() for p, _, _ in expected]
    assert re.search("1000-0-0-0.wav cannot be read as audio: .* not finite", report.unreadable[1])
