"""Common parts of the corpus checks: comparing splits, and hashing the data that s3prl reads."""

import os
import shutil

import pytest

from ssamba_upstream.corpora.report import SAMPLED_FILES, CorpusReport, recordings_of, sample


def write(folder, **files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(content)
    return folder


def report_of(root, texts=("list",), **splits):
    """A corpus of files in folders named after the splits, and a list."""
    report = CorpusReport("A corpus", root, "")
    for split, names in splits.items():
        report.recordings[split] = recordings_of({name: root / split / name for name in names})
    report.texts = {name: root / name for name in texts}
    return report


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "corpus"
    write(root, list="1 a\n2 b\n")
    write(root / "train", a="one", b="two")
    write(root / "test", c="six", d="ten")
    return root


def problems(report):
    report.check_disjoint("correct the list")
    return report.problems


def test_recordings_in_two_splits(root):
    assert problems(report_of(root, train="ab", test="cd")) == []
    (root / "test" / "c").unlink()
    os.link(root / "train" / "a", root / "test" / "c")  # one file with two names
    (root / "test" / "d").unlink()
    (root / "test" / "d").symlink_to(root / "train" / "b")
    assert problems(report_of(root, train="ab", test="cd")) == [
        "2 of the 2 recordings in test are also in train: c, d; correct the list."]


def test_copies_are_known_by_name_and_content(root):
    write(root / "dev", a="one", b="six")
    assert problems(report_of(root, train="ab", dev="ab", test="cd")) == [
        "1 of the 2 recordings in dev are also in train: a; correct the list."]
    nested = report_of(root)
    nested.recordings = {"train": recordings_of({"speaker/a": root / "train" / "a"}),
                         "dev": recordings_of({"x/y/a": root / "dev" / "a"})}
    assert len(problems(nested)) == 1


def test_missing_recordings_are_left_to_the_checks(root):
    report = report_of(root, train="ax", test="cd")
    assert [recording.name for recording in report.recordings["train"]] == ["a"] and problems(report) == []


def test_shared_speakers_are_noted(root):
    report = report_of(root)
    report.check_speakers({"train": {"7", "1"}, "dev": {"2"}, "test": {"1", "7"}})
    note, = report.notes
    assert note.startswith("train and test share speakers: 1, 7.")


def test_the_content_hash_stays_with_a_copy(root, tmp_path):
    before = report_of(root, train="ab", test="cd").content_hash
    copy = shutil.copytree(root, tmp_path / "elsewhere", copy_function=shutil.copy)  # with new timestamps
    os.utime(copy / "train" / "a", (0, 0))
    assert report_of(copy, train="ab", test="cd").content_hash == before


@pytest.mark.parametrize("change", [
    lambda root: (root / "list").write_text("2 a\n1 b\n"),
    lambda root: (root / "train" / "a").write_text("longer"),
    lambda root: (root / "train" / "a").write_text("uno"),
    lambda root: (root / "train" / "a").rename(root / "train" / "c"),
    lambda root: shutil.move(root / "train" / "a", root / "test" / "a"),
])
def test_the_content_hash_changes_with_the_corpus(change, root):
    def report():
        return report_of(root, **{split: sorted(os.listdir(root / split)) for split in ("train", "test")})

    before = report().content_hash
    change(root)
    assert report().content_hash != before


@pytest.mark.parametrize("count", [0, 1, SAMPLED_FILES, SAMPLED_FILES + 1, 1000])
def test_samples_are_even(count):
    drawn = sample(list(range(count)))
    assert len(drawn) <= SAMPLED_FILES and len({b - a for a, b in zip(drawn, drawn[1:])}) <= 1
    assert drawn[:1] == [0][:count] and (not drawn or count - drawn[-1] <= max(1, drawn[-1]))
