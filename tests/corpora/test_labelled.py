"""Labelled sets from a CSV file, or from one folder per class."""

import random
from pathlib import Path

import pytest

from ssamba_upstream.corpora.labelled import LabelledSet, LabelledSetError, join_labels, read_labelled, split_labels


@pytest.fixture
def folder(tmp_path):
    """Two class folders of ten recordings each, some of them in subfolders."""
    for label in ("cat", "dog"):
        for i in range(10):
            file = tmp_path / label / (f"{i}.wav" if i else "deeper/0.FLAC")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    (tmp_path / "cat" / "notes.txt").touch()
    (tmp_path / "cat" / "._1.wav").touch()
    return tmp_path


def write_csv(folder, *lines):
    file = folder / "set.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_a_folder_for_each_class(folder):
    found = read_labelled(folder)
    assert len(found.paths) == 20 and found.classes == ["cat", "dog"]
    assert all(path.is_file() and path.relative_to(folder).parts[0] == label
               for path, label in zip(found.paths, found.labels))
    for label in found.classes:
        of_class = [split for split, other in zip(found.splits, found.labels) if other == label]
        assert {split: of_class.count(split) for split in set(of_class)} == {"train": 7, "dev": 1, "test": 2}
    assert read_labelled(folder) == found
    assert not found.has_folds


def test_the_split_does_not_depend_on_place_or_order(folder):
    by_folder = read_labelled(folder)
    names = [path.relative_to(folder).as_posix() for path in by_folder.paths]
    rows = [f"{name},{name.split('/')[0]}" for name in names]
    random.Random(0).shuffle(rows)
    by_csv = read_labelled(write_csv(folder, "path,label", *rows))
    assert dict(zip(by_csv.paths, by_csv.splits)) == dict(zip(by_folder.paths, by_folder.splits))


def test_a_csv_with_splits_or_folds(folder):
    file = write_csv(folder, "split,path,label", f"train,{folder / 'cat/1.wav'},cat", "dev,dog/1.wav,dog",
                     'test,dog/2.wav,"dog"')
    found = read_labelled(file)
    assert found == LabelledSet([folder / "cat/1.wav", folder / "dog/1.wav", folder / "dog/2.wav"],
                                ["cat", "dog", "dog"], ["train", "dev", "test"])
    folds = read_labelled(write_csv(folder, "path,label,split", "cat/1.wav,cat,1", "dog/1.wav,dog,2",
                                    "dog/2.wav,dog,3"))
    assert folds.has_folds and folds.splits == ["1", "2", "3"] and folds.groups is None


def test_groups(folder):
    file = write_csv(folder, "path,label,group", *(f"{label}/{i}.wav,{label},{label}{i // 4}"
                                                   for label in ("cat", "dog") for i in range(1, 10)))
    found = read_labelled(file)
    assert found.groups == [f"{label}{i // 4}" for label in ("cat", "dog") for i in range(1, 10)]
    left = found.without(found.paths[:4])
    assert (left.paths, left.groups) == (found.paths[4:], found.groups[4:])
    assert left.splits == found.splits[4:] and left.content_hash != found.content_hash


@pytest.mark.parametrize("lines, message", [
    (["path,label"], "is empty"),
    (["path,label", "cat/1.wav,cat", "cat/2.wav,cat", "cat/3.wav,cat"], "all 3 recordings are labelled"),
    (["path,label", "cat/1.wav,cat", "dog/1.wav,dog"], "has 1 recordings; a split into"),
    (["path,label,split", "cat/1.wav,cat,train", "dog/1.wav,dog,dev"], "splits are dev, train; expected"),
    (["path,label,split", "cat/1.wav,cat,train", "dog/1.wav,dog,1", "dog/2.wav,dog,test"],
     "splits are 1, test, train; expected train, dev and test, or train and test, or the names"),
    (["path,label,split", "cat/1.wav,cat,1", "dog/1.wav,dog,2"], "splits are 1, 2; expected .* three"),
    (["path,label,split", "cat/1.wav,cat,train", "dog/1.wav,dog,"], "line 3: expected a value for each of"),
    (["path,label", "cat/1.wav,cat,train"], "line 2: expected a value for each of path, label"),
    (["path,label", "cat/1.wav"], "line 2: expected a value for each of path, label"),
    (["path,label", ",cat"], "line 2: expected a value for each of path, label"),
    (["file,label", "cat/1.wav,cat"], "columns file, label; expected path, label, and optionally split and group"),
    (["path,label,speaker", "cat/1.wav,cat,x"], "columns path, label, speaker; expected"),
    (["path,label,split", "cat/1.wav,cat,train", "dog/1.wav,dog,dev", "dog/1.wav,dog,test"],
     "more than once.*1.wav"),
    (["path,label,split", *(f"cat/{i}.wav,cat,{i}" for i in range(8, 15)), "dog/1.wav,dog,8"],
     r"5 of 8 recordings do not exist: \S*10.wav, \S*11.wav, \S*12.wav and 2 more"),
])
def test_labelled_sets_that_nothing_can_be_trained_on(folder, lines, message):
    with pytest.raises(LabelledSetError, match=message) as caught:
        read_labelled(write_csv(folder, *lines))
    assert str(folder / "set.csv") in str(caught.value) or "split into" in str(caught.value)


def test_an_empty_folder_and_no_folder(tmp_path):
    with pytest.raises(LabelledSetError, match="empty"):
        read_labelled(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_labelled(tmp_path / "absent")
    with pytest.raises(LabelledSetError, match="2 paths, 1 labels and 2 splits"):
        LabelledSet([Path("a"), Path("b")], ["x"], ["1", "2"])


def test_empty_labels(folder):
    rows = ["cat/1.wav,,train", "cat/2.wav,a,train", "dog/1.wav,a;;b,dev", "dog/2.wav,a,test"]
    found = read_labelled(write_csv(folder, "path,label,split", *rows))
    assert found.labels == ["", "a", "a;;b", "a"]
    assert [*map(split_labels, found.labels)] == [[], ["a"], ["a", "", "b"], ["a"]]
    with pytest.raises(LabelledSetError, match=r"1 of 4 recordings have no label: \S*1.wav. Probes need a class"):
        found.check_probes()


def test_train_and_test_without_dev(folder):
    rows = ["cat/1.wav,cat,train", "dog/1.wav,dog,train", "dog/2.wav,dog,test"]
    found = read_labelled(write_csv(folder, "path,label,split", *rows))
    assert found.splits == ["train", "train", "test"] and not found.has_folds


def test_several_classes_in_a_label():
    assert split_labels(join_labels(["Speech", "Male speech, man speaking"])) == ["Speech", "Male speech, man speaking"]
    assert split_labels("dog;dog;siren") == ["dog", "dog", "siren"] and split_labels("dog") == ["dog"]
    with pytest.raises(LabelledSetError, match="the class 'a;b' has a ';' in its name"):
        join_labels(["c", "a;b"])
