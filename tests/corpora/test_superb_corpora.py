"""Checks of the corpora other than VoxCeleb1, IEMOCAP and Speech Commands, complete and with parts missing, and the
properties common to all twelve."""

import csv
import json
import os
import shutil
from argparse import Namespace

import numpy as np
import pytest
import soundfile

from ssamba_upstream.cli import main
from ssamba_upstream.corpora.report import CorpusError
from ssamba_upstream.corpora.superb import libri2mix, voicebank_demand
from ssamba_upstream.corpora.superb.sets import CHECKS

pytestmark = pytest.mark.slow  # creating the corpora takes seconds

PLACES = {
    "pr": "LibriSpeech", "asr": "LibriSpeech", "sf": "SNIPS", "ic": "fluent_speech_commands_dataset",
    "asv": "VoxCeleb1_trials", "sd": "diarization", "qbe": "quesst14Database", "se": "enhancement", "ss": "separation",
}
ALL_PLACES = {**PLACES, "sid": "VoxCeleb1", "er": "IEMOCAP", "ks": "commands"}


@pytest.fixture
def corpus(synthetic, tmp_path):
    """A separate copy of a task's corpus. Lists of mixtures still name recordings of the shared one."""
    def copy(task):
        place = tmp_path / ALL_PLACES[task]
        if task == "ks":
            for folder in synthetic.glob("speech_commands*"):
                shutil.copytree(folder, place / folder.name)
            return place
        return shutil.copytree(synthetic / ALL_PLACES[task], place)
    return copy


def problem(task, root, *fragments, others=0):
    """Return the one problem with all fragments; assert that there are ``others`` more, and that all are sentences."""
    report = CHECKS[task](root)
    matching = [text for text in report.problems if all(fragment in text for fragment in fragments)]
    assert len(matching) == 1 and len(report.problems) == 1 + others, report.problems
    assert all(text.endswith(".") for text in report.problems) and "Run with" not in str(report)
    return matching[0]


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("task", PLACES)
def test_synthetic_corpora_pass_their_checks(task, synthetic, capsys):
    assert main(["corpora", "check", task, str(synthetic / PLACES[task])]) == 0
    printed = capsys.readouterr().out
    assert "laid out correctly for s3prl" in printed and "Run with: -o " in printed
    report = CHECKS[task](synthetic / PLACES[task])
    if task == "qbe":
        assert {part: counts["recordings"] for part, counts in report.counts.items()} == {
            "dev": 4, "test": 4, "documents": 12}
    elif task == "asv":
        assert report.counts == {"train": {"utterances": 12, "speakers": 3}, "test": {"trials": 6, "of one speaker": 2}}
    else:
        assert {split: counts["utterances"] for split, counts in report.counts.items()} == {
            "train": 12, "dev": 4, "test": 4}
        assert "not the whole released corpus" in str(report)


@pytest.mark.parametrize("task", CHECKS)
def test_roots_that_are_no_corpus(task, tmp_path):
    problem(task, tmp_path / "absent", str(tmp_path / "absent"), "does not exist")
    (tmp_path / "file").write_text("")
    problem(task, tmp_path / "file", "is not a folder")
    (tmp_path / "empty").mkdir()
    report = CHECKS[task](tmp_path / "empty")
    assert report.problems and all(text.endswith(".") for text in report.problems)
    assert task in ("er", "ks") or any("https://" in text or ".zip" in text for text in report.problems)


def options(task, root, field):
    from s3prl.utility.helper import override

    config = {}
    override(CHECKS[task](root).override, Namespace(), config)
    return config["downstream_expert"][field]


def test_s3prl_reads_the_layouts(synthetic):
    for package in ("librosa", "h5py", "pandas"):
        pytest.importorskip(package)
    from ssamba_upstream.plugin import compat

    compat.apply()
    from s3prl.downstream.diarization.dataset import DiarizationDataset
    from s3prl.downstream.enhancement_stft.dataset import SeparationDataset as Enhancement
    from s3prl.downstream.fluent_commands.dataset import FluentCommandsDataset
    from s3prl.downstream.quesst14_dtw.dataset import QUESST14Dataset
    from s3prl.downstream.separation_stft.dataset import SeparationDataset as Separation

    pandas = pytest.importorskip("pandas")
    folders = options("sd", synthetic / "diarization", "loaderrc")
    mixtures = DiarizationDataset("test", folders["test_dir"], frame_shift=320, num_speakers=2)
    assert len(mixtures) == 4
    (samples,), (labels,), name = mixtures[0]
    assert labels.shape == (len(samples) // 320, 2) and labels.any(0).all() and name == "mix0016"
    for task, dataset, kinds in (("se", Enhancement, (["noisy"], ["clean"])),
                                 ("ss", Separation, (["mix_clean"], ["s1", "s2"]))):
        folders = options(task, synthetic / PLACES[task], "loaderrc")
        signals = dataset(folders["train_dir"], src=kinds[0], tgt=kinds[1])
        assert len(signals) == 12 and len(signals[0][3]) == len(kinds[1])
    queries = QUESST14Dataset("eval", **options("qbe", synthetic / "quesst14Database", "datarc"))
    assert (queries.n_queries, queries.n_docs) == (4, 12) and queries[0][1] == "quesst14_eval_0001"
    root = options("ic", synthetic / PLACES["ic"], "datarc")["file_path"]
    table = pandas.read_csv(f"{root}/data/test_data.csv")
    values = {slot: {value: number for number, value in enumerate(sorted(set(table[slot])))}
              for slot in ("action", "object", "location")}
    assert len(FluentCommandsDataset(table, root, values)[0][1]) == 3


def test_s3prl_reads_transcripts(synthetic):
    pytest.importorskip("editdistance")
    from ssamba_upstream.configs import configs_folder
    from ssamba_upstream.plugin import compat
    from ssamba_upstream.plugin.repairs.ctc_corpora import LibriPhoneDataset, SnipsDataset

    compat.apply()
    from s3prl.downstream.ctc.text import load_text_encoder

    vocabularies = configs_folder("downstream") / "vocabularies"
    given = options("pr", synthetic / "LibriSpeech", "corpus")
    phones = LibriPhoneDataset(["test-clean"], load_text_encoder("word", vocabularies / "phonemes.txt"), 1, **given)
    assert len(phones) == 4 and 2 not in phones[0][1]
    root = synthetic / "SNIPS"
    encoder = load_text_encoder("character-slot", vocabularies / "characters.txt",
                                slots_file=options("sf", root, "text")["slots_file"])
    slots = SnipsDataset(["test"], encoder, 1, root, test_speakers=["Brian", "Emma"])
    text = encoder.decode(slots[0][1])
    assert len(slots) == 4 and "B-keyword " in text and " E-number" in text


@pytest.mark.parametrize("task", ["pr", "asr", "sf", "ic", "sd", "se", "ss"])
def test_recordings_of_another_rate(task, corpus, synthetic, tmp_path):
    root = corpus(task)
    recordings = sorted([*root.rglob("*.flac"), *root.rglob("*.wav")])
    if task in ("se", "ss"):  # the lists name recordings elsewhere
        scp = next(root.rglob("wav.scp"))
        name, path = scp.read_text().splitlines()[0].split()
        scp.write_text(scp.read_text().replace(path, str(tmp_path / "other.wav")))
        recordings = [tmp_path / "other.wav"]
        samples = soundfile.read(path)[0]
    elif task == "sd":
        scp = root / "train" / "wav.scp"
        scp.write_text(scp.read_text().replace(str(synthetic), str(tmp_path)))
        recordings, samples = [root / "train" / "wav" / "mix0000.wav"], np.zeros(16000)
    else:
        samples = np.zeros(16000)
    soundfile.write(recordings[0], samples, 8000)
    problem(task, root, "8000 Hz and 1 channel", str(recordings[0]))


# Common to all twelve


def append(path, lines):
    path.write_text(path.read_text() + "".join(lines))


def leak_chapters(root):
    shutil.copytree(root / "test-clean" / "21", root / "train-clean-100" / "21")


def leak_slots(root):
    test = next((root / "test").glob("*.wav"))
    os.link(test, root / "train" / "Ivy-leak.wav")
    line = next(line for line in (root / "all.iob.snips.txt").open() if line.startswith(f"{test.stem} "))
    append(root / "all.iob.snips.txt", [line.replace(test.stem, "Ivy-leak")])


def leak_intents(root):
    append(root / "data" / "train_data.csv", (root / "data" / "test_data.csv").read_text().splitlines(True)[1:])


def leak_speakers(root):
    lines = (root / "veri_test_class.txt").read_text().splitlines(True)
    append(root / "veri_test_class.txt", [f"1{line[1:]}" for line in lines if line[0] == "3"])


def leak_trials(root):
    shutil.copytree(root / "test" / "wav" / "id10004", root / "dev" / "wav" / "id10004")


def leak_mixtures(root):
    for path in (root / "test").iterdir():
        if path.is_file() and path.name != "rttm":
            append(root / "train" / path.name, [path.read_text()])


def leak_queries(root):
    append(root / "scoring" / "language_key_utterances.lst", [(root / "scoring" / "language_key_eval.lst").read_text()])


def leak_signals(root):
    shutil.rmtree(root / "train")
    shutil.copytree(root / "test", root / "train")


def leak_turns(root):
    train, test = (root / "meta_data" / "Session1" / f"{split}_meta_data.json" for split in ("train", "test"))
    content = json.loads(train.read_text())
    content["meta_data"] += json.loads(test.read_text())["meta_data"]
    train.write_text(json.dumps(content))


def leak_keywords(root):
    test = next((root / "speech_commands_test_set_v0.01" / "yes").glob("*.wav"))
    os.link(test, root / "speech_commands_v0.01" / "yes" / "4a294341_nohash_7.wav")


LEAKS = {
    "pr": leak_chapters, "asr": leak_chapters, "sf": leak_slots, "ic": leak_intents, "sid": leak_speakers,
    "asv": leak_trials, "sd": leak_mixtures, "qbe": leak_queries, "se": leak_signals, "ss": leak_signals,
    "er": leak_turns, "ks": leak_keywords,
}


@pytest.mark.parametrize("task", CHECKS)
def test_a_copied_corpus_has_its_content_and_a_leak_is_a_problem(task, synthetic, corpus):
    root = corpus(task)
    original = CHECKS[task](synthetic if task == "ks" else synthetic / ALL_PLACES[task])
    copy = CHECKS[task](root)
    assert original.ok and copy.ok and copy.content_hash == original.content_hash
    assert not copy.released and any("not the whole released corpus" in note for note in copy.notes)
    assert set(copy.recordings) > {"dev", "test"} or task in ("er", "asv")
    LEAKS[task](root)
    text = {"er": "40 utterances of Session1, its test set: ", "qbe": "recordings in documents are also in test: "}
    problem(task, root, text.get(task, "recordings in test are also in train: "), others=task == "asv")
    assert CHECKS[task](root).content_hash != original.content_hash


@pytest.mark.parametrize("task, path, old, new", [
    ("asr", "test-clean/21/7/21-7.trans.txt", None, None),
    ("pr", "librispeech-lexicon-200k-g2p.txt", None, None),
    ("sf", "all.iob.snips.txt", None, None),
    ("ic", "data/train_data.csv", ",deactivate,", ",activate,"),
    ("sd", "test/reco2dur", "mix0016 ", "mix0016  "),
    ("qbe", "scoring/language_key_eval.lst", None, None),
    ("asv", "voxceleb1_test_v2.txt", None, None),
    ("sid", "veri_test_class.txt", None, None),
    ("er", "meta_data/Session3/train_meta_data.json", ": ", ":  "),
])
def test_lists_and_transcripts_count_in_every_byte(task, path, old, new, corpus):
    root = corpus(task)
    before = CHECKS[task](root).content_hash
    if old is None:
        (root / path).write_text("".join(reversed((root / path).read_text().splitlines(keepends=True))))
    else:
        replace(root / path, old, new)
    report = CHECKS[task](root)
    assert report.ok and report.content_hash != before


# LibriSpeech


def test_librispeech_reports_lines_at_which_s3prl_stops(corpus):
    root = corpus("asr")
    transcript = next((root / "dev-clean").rglob("*.trans.txt"))
    transcript.write_text(transcript.read_text() + " \n")
    problem("asr", root, "empty lines, which stop s3prl", f"{transcript}, line 3")


def test_librispeech_notes_shared_speakers(corpus):
    root = corpus("asr")
    chapter = root / "train-clean-100" / "21" / "8"
    shutil.copytree(root / "test-clean" / "21" / "7", chapter)
    for path in [*chapter.iterdir()]:
        path.rename(path.with_name(path.name.replace("21-7", "21-8")))
    transcript = chapter / "21-8.trans.txt"
    transcript.write_text(transcript.read_text().replace("21-7", "21-8"))
    report = CHECKS["asr"](root)
    assert report.ok and "train and test share speakers: 21." in str(report)


def test_librispeech_reports_splits_and_transcripts(corpus):
    root = corpus("asr")
    transcript = next((root / "dev-clean").rglob("*.trans.txt"))
    lines = transcript.read_text().splitlines(keepends=True)
    transcript.write_text("".join(lines[1:]))
    problem("asr", root, "1 of the 4 recordings in dev-clean", lines[0].split()[0])
    shutil.rmtree(root / "dev-clean")
    problem("asr", root, "no utterances for dev", "https://www.openslr.org/12")


def test_librispeech_reports_lexicons(corpus, tmp_path):
    root = corpus("pr")
    lexicon = root / "librispeech-lexicon-200k-g2p.txt"
    words = [line.split()[1] for line in next((root / "test-clean").rglob("*.trans.txt")).read_text().splitlines()]
    text = lexicon.read_text()
    lexicon.write_text("".join(line for line in text.splitlines(keepends=True) if not line.startswith(f"{words[0]} ")))
    problem("pr", root, "1 words in the transcripts are in neither lexicon", words[0])
    lexicon.write_text(text.replace(f"{words[0]} ", f"{words[0]} QQ "))
    problem("pr", root, "the config's vocabulary lacks", ": QQ;")
    lexicon.rename(tmp_path / lexicon.name)
    problem("pr", root, "is missing", "https://huggingface.co/datasets/s3prl/g2p")
    assert CHECKS["asr"](root).ok
    (root / "librispeech-lexicon-allothers-g2p.txt").rename(tmp_path / "librispeech-lexicon-allothers-g2p.txt")
    (tmp_path / lexicon.name).write_text(text)
    assert CHECKS["pr"](root, tmp_path).ok


# Audio SNIPS


def test_audio_snips_reports_transcripts_and_slots(corpus):
    root = corpus("sf")
    text = (root / "all.iob.snips.txt").read_text()
    first = text.split(" ")[0]
    replace(root / "all.iob.snips.txt", "\tO ", " O ")
    problem("sf", root, "lines that are not", first)
    (root / "all.iob.snips.txt").write_text(text)
    replace(root / "slots.txt", "number", "digit")
    problem("sf", root, "lacks slots", ": number;")
    (root / "slots.txt").unlink()
    problem("sf", root, "slots.txt cannot be read", "superb.md")


def test_audio_snips_reports_speakers(corpus):
    root = corpus("sf")
    replace(root / "all.iob.snips.txt", "Brian-test", "Bryan-test")
    report = CHECKS["sf"](root)
    assert report.ok and report.counts["test"] == {"utterances": 3, "speakers": 2}
    assert "recordings in test have no line" in str(report)
    shutil.rmtree(root / "valid")
    problem("sf", root, "no utterances for dev")


# Fluent Speech Commands


def test_fluent_speech_commands_reports_lists(corpus):
    root = corpus("ic")
    test = root / "data" / "test_data.csv"
    text = test.read_text()
    test.write_text(text.replace("deactivate", "explode", 1))
    problem("ic", root, "test_data.csv has values of action", "not in train_data.csv", ": explode;")
    test.write_text(text.replace("location", "place", 1))
    problem("ic", root, "row 2, has no location")
    test.unlink()
    problem("ic", root, "test_data.csv cannot be read", "fluent.ai")
    test.write_text(text)
    path = root / next(csv.DictReader(text.splitlines()))["path"]
    path.unlink()
    problem("ic", root, "1 of the 20 recordings", str(path))


# Trials of VoxCeleb1


def test_trials_are_checked(corpus, tmp_path):
    root = corpus("asv")
    trials = root / "voxceleb1_test_v2.txt"
    lines = trials.read_text().splitlines(keepends=True)
    trials.write_text("".join(lines) + "\n")
    problem("asv", root, "line 7 ('')")
    trials.write_text("".join(line for line in lines if line[0] == "0"))
    problem("asv", root, "trials of one speaker and trials of two")
    trials.write_text("".join(lines))
    name = lines[0].split()[1]
    (root / "test" / "wav" / name).rename(tmp_path / "elsewhere.wav")
    problem("asv", root, "1 of the 4 recordings in the trials", name)
    (tmp_path / "elsewhere.wav").rename(root / "test" / "wav" / name)
    trials.rename(tmp_path / "trials.txt")
    problem("asv", root, "cannot be read", "openslr.org")
    assert CHECKS["asv"](root, tmp_path / "trials.txt").ok


def test_speakers_of_the_trials_are_not_trained_on(corpus):
    root = corpus("asv")
    video = root / "dev" / "wav" / "id10004" / "other"
    shutil.copytree(root / "dev" / "wav" / "id10001" / "video0", video)
    problem("asv", root, "1 of the 2 speakers in the trials", ": id10004;")


def test_recordings_to_train_verification(corpus):
    root = corpus("asv")
    for path in (root / "dev").rglob("*.wav"):
        soundfile.write(path, np.zeros(1600), 16000)
    problem("asv", root, "longer than 2 s", others=0)
    for speaker in ("id10001", "id10002"):
        shutil.rmtree(root / "dev" / "wav" / speaker)
    problem("asv", root, "contains 1 speaker(s)", "vox1_dev_wav.zip")


# Libri2Mix for diarization


@pytest.mark.parametrize("name, old, new, fragment", [
    ("reco2dur", "mix0012 ", "mix9999 ", "no duration in reco2dur: mix0012"),
    ("segments", "mix0012_0 mix0012", "mix0012_0 mix9999", None),
    ("utt2spk", "mix0012_0 ", "mix9999_0 ", "a segment whose speaker utt2spk does not name: mix0012"),
    ("segments", "mix0012_0 mix0012", "mix0012_0", "does not have 4 fields"),
    ("wav.scp", "mix0012.wav", "gone.wav", "1 of the 4 recordings"),
])
def test_diarization_reports_files(name, old, new, fragment, corpus):
    root = corpus("sd")
    replace(root / "dev" / name, old, new)
    if fragment is None:
        assert CHECKS["sd"](root).ok  # one speaker remains
    else:
        problem("sd", root, fragment)


def test_lists_may_name_recordings_elsewhere(corpus, synthetic, tmp_path):
    root = corpus("sd")
    before = CHECKS["sd"](root).content_hash
    for scp in root.rglob("wav.scp"):
        scp.write_text(scp.read_text().replace(str(synthetic), str(tmp_path)))
    shutil.rmtree(root / "train" / "wav")
    assert not CHECKS["sd"](root).ok
    shutil.copytree(synthetic / "diarization" / "train" / "wav", root / "train" / "wav")
    assert CHECKS["sd"](root).content_hash == before


def test_diarization_reports_speakers_and_absent_files(corpus):
    root = corpus("sd")
    (root / "test" / "rttm").unlink()
    report = CHECKS["sd"](root)
    assert report.ok and "rttm is missing" in str(report)
    for name, line in (("segments", "extra mix0012 0 1\nmore mix0012 0 1\n"), ("utt2spk", "extra c\nmore d\n")):
        (root / "dev" / name).write_text((root / "dev" / name).read_text() + line)
    problem("sd", root, "more than 2 speakers: mix0012")
    (root / "dev" / "segments").write_text("")
    problem("sd", root, "4 mixtures", "no segment")
    (root / "dev" / "reco2dur").unlink()
    problem("sd", root, "reco2dur cannot be read", "https://github.com/s3prl/LibriMix")
    shutil.rmtree(root / "test")
    problem("sd", root, "test/wav.scp cannot be read", others=1)


def in_samples(path, columns):
    """Convert a file's times to samples, a mistake that s3prl does not report."""
    rows = [line.split() for line in path.read_text().splitlines()]
    for row in rows:
        row[columns] = [f"{16000 * float(seconds):.0f}" for seconds in row[columns]]
    path.write_text("".join(f"{' '.join(row)}\n" for row in rows))


@pytest.mark.parametrize("name, columns, text", [
    ("segments", slice(2, 4), "a segment that does not lie in the recording"),
    ("rttm", slice(3, 5), "a turn in rttm that does not lie in the recording"),
    ("reco2dur", slice(1, 2), "a duration in reco2dur that is not the recording's"),
])
def test_diarization_reports_times_in_samples(name, columns, text, corpus):
    root = corpus("sd")
    in_samples(root / "test" / name, columns)
    problem("sd", root, "4 mixtures", text, "mix0016")


def test_diarization_reports_times_that_are_no_numbers(corpus):
    root = corpus("sd")
    segments = root / "dev" / "segments"
    segments.write_text(segments.read_text().replace(" 0.000 ", " start ", 1))
    problem("sd", root, "1 mixtures", "a segment that does not lie in the recording")
    rttm = root / "test" / "rttm"
    rttm.write_text("SPEAKER mix0016 1 0.5 1.0\n")
    problem("sd", root, "line 1: 'SPEAKER mix0016", "<duration>", others=1)


# QUESST 2014


def test_queries_are_checked(corpus):
    root = corpus("qbe")
    assert "score-TWV-Cnxe.sh" in CHECKS["qbe"](root).notes[0]
    (root / "dev_queries" / "quesst14_dev_0001.wav").unlink()
    problem("qbe", root, "1 of the 4 recordings in language_key_dev.lst")
    replace(root / "scoring" / "language_key_dev.lst", " nnenglish", "")
    problem("qbe", root, "line 1 ('quesst14Database/dev_queries/quesst14_dev_0001.wav')")
    path = root / "scoring" / "language_key_dev.lst"
    path.write_text("quesst14Database/dev_queries/quesst14_dev_0001.wav czech\n")
    problem("qbe", root, "no recording in nnenglish")
    path.unlink()
    problem("qbe", root, "language_key_dev.lst cannot be read", "quesst14Database.tgz")


# Voicebank-DEMAND and Libri2Mix for separation


@pytest.mark.parametrize("task, kind", [("se", "clean"), ("ss", "s2")])
def test_signals_are_checked(task, kind, corpus, tmp_path):
    root = corpus(task)
    scp = root / "dev" / kind / "wav.scp"
    text = scp.read_text()
    lines = text.splitlines(keepends=True)
    scp.write_text("".join(lines[1:]))
    name = lines[0].split()[0]
    report = CHECKS[task](root)
    assert len(report.problems) == {"se": 1, "ss": 2}[task] and all(f"{name};" in text for text in report.problems)
    soundfile.write(tmp_path / "short.wav", np.zeros(160), 16000)
    scp.write_text(text.replace(lines[0].split()[1], str(tmp_path / "short.wav")))
    problem(task, root, "short.wav is not as long as")
    scp.write_text(text.replace(lines[0].split()[1], str(tmp_path / "gone.wav")))
    problem(task, root, "1 of the 4 recordings", "gone.wav")
    scp.write_text("one_field\n")
    problem(task, root, "line 1: 'one_field' does not have 2 fields")
    scp.unlink()
    problem(task, root, "wav.scp cannot be read", f"ssamba corpora kaldi {task}")


def test_paths_with_a_space(corpus, tmp_path):
    root = corpus("se")
    scp = root / "dev" / "clean" / "wav.scp"
    path = scp.read_text().splitlines()[0].split()[1]
    shutil.copy(path, tmp_path / "a space.wav")
    replace(scp, path, str(tmp_path / "a space.wav"))
    problem("se", root, "has paths with spaces, which stop s3prl", "a space.wav")


def test_lists_of_wavs(synthetic, tmp_path, capsys):
    assert main(["corpora", "kaldi", "se", str(synthetic / "Voicebank"), "--out", str(tmp_path / "lists")]) == 0
    lists = tmp_path / "lists"
    names = {split: [line.split()[0] for line in (lists / split / "noisy" / "wav.scp").read_text().splitlines()]
             for split in ("train", "dev", "test")}
    assert names["dev"] == [f"p226_{number:03d}" for number in range(4)] and len(names["train"]) == 12
    shutil.copytree(synthetic / "Libri2Mix", tmp_path / "Libri2Mix")
    shutil.rmtree(tmp_path / "Libri2Mix" / "wav16k" / "min" / "test" / "s2")
    with pytest.raises(CorpusError, match="generate_librimix_ss.sh"):
        libri2mix.write_kaldi(tmp_path / "Libri2Mix", tmp_path / "separation")
    with pytest.raises(CorpusError, match="noisy_trainset_28spk_wav_16k is missing"):
        voicebank_demand.write_kaldi(tmp_path, tmp_path / "enhancement")
    assert not (tmp_path / "separation").exists() and not (tmp_path / "enhancement").exists()


def test_the_thousand_mixtures_of_dev(tmp_path):
    """s3prl's subsample.py (seed 7) keeps all but one of 1,001 mixtures; the one was found by hand from its rule."""
    import random

    for name in libri2mix.FOLDERS.values():
        for kind in libri2mix.KINDS:
            folder = tmp_path / name / kind
            folder.mkdir(parents=True)
            for number in range(1001 if name == "dev" else 1):
                (folder / f"{number:04d}.wav").touch()
    libri2mix.write_kaldi(tmp_path, tmp_path / "lists")
    names = [f"{number:04d}" for number in range(1001)]
    random.seed(7)
    random.shuffle(names)
    for kind in libri2mix.KINDS:
        lines = (tmp_path / "lists" / "dev" / kind / "wav.scp").read_text().splitlines()
        assert {line.split()[0] for line in lines} == set(names[:1000])
