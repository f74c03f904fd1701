"""Segments read from a table or from TIMIT's files, and the frames drawn from them."""

import numpy as np
import pytest
import soundfile

from ssamba_upstream.corpora.alignments import AlignedSet, RecordingFrame, Segment, draw_frames, read_alignments
from ssamba_upstream.corpora.labelled import LabelledSetError
from ssamba_upstream.corpora.timit import CLASSES, PHONES, UNLABELLED, read_timit


def write_wavs(folder, *names, seconds=1.0, rate=16000):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, np.zeros(round(seconds * rate)), rate)


def write_table(folder, *lines, name="phones.csv"):
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def test_a_table_with_splits(tmp_path):
    write_wavs(tmp_path, "a.wav", "b/b.wav", "c.wav")
    lines = ["path,start,end,label,split,group", "a.wav,0.5,1,t,train,x", "a.wav,0,0.25,s,train,x",
             "b/b.wav,0,1,s,dev,x", "c.wav,0,0.5,t,test,y"]
    found = read_alignments(write_table(tmp_path, *lines))
    assert found.segments == {
        tmp_path / "a.wav": [Segment(0, 0.25, "s"), Segment(0.5, 1, "t")],
        tmp_path / "b/b.wav": [Segment(0, 1, "s")],
        tmp_path / "c.wav": [Segment(0, 0.5, "t")],
    }
    assert [*found.splits.values()] == ["train", "dev", "test"]
    assert [*found.groups.values()] == ["x", "x", "y"]
    with_tabs = write_table(tmp_path, *(line.replace(",", "\t") for line in lines), name="phones.tsv")
    assert read_alignments(with_tabs) == found


def test_recordings_without_a_split_are_split_whole(tmp_path):
    names = [f"{number}.wav" for number in range(10)]
    write_wavs(tmp_path, *names)
    rows = [f"{name},{start},{start + 0.5},{label}" for name in names for start, label in ((0, "s"), (0.5, "t"))]
    splits = read_alignments(write_table(tmp_path, "path,start,end,label", *rows)).splits
    assert sorted(splits.values()) == ["dev", "test", "test"] + ["train"] * 7
    assert read_alignments(write_table(tmp_path, "path,start,end,label", *rows[::-1])).splits == splits


@pytest.mark.parametrize("line, message", [
    ("a.wav,0,x,s,train", "line 5: expected seconds, the end after the start; got start 0, end x"),
    ("a.wav,1,1,s,train", "got start 1, end 1"),
    ("a.wav,-1,1,s,train", "got start -1, end 1"),
    ("a.wav,0,nan,s,train", "got start 0, end nan"),
    ("a.wav,0,inf,s,train", "got start 0, end inf"),
    ("a.wav,0.4,1,,train", "line 5: expected a value for each of path, start, end, label, split"),
    ("a.wav,0.4,1,t", "line 5: expected a value"),
    ("a.wav,0.4,1,t,train", "segments of a.wav overlap: s ends at 0.5 s, t starts at 0.4 s"),
    ("a.wav,0.5,1,t,test", "line 5: a.wav is in train and in test"),
    ("d.wav,0.5,1,t,fold1", "the splits are dev, fold1, test"),
    ("d.wav,0.5,1,t,test", "1 of 4 recordings do not exist: .*d.wav"),
])
def test_what_is_wrong_in_a_table_is_said(tmp_path, line, message):
    write_wavs(tmp_path, "a.wav", "b.wav", "c.wav")
    table = write_table(tmp_path, "path,start,end,label,split", "a.wav,0,0.5,s,train", "b.wav,0,0.5,s,dev",
                        "c.wav,0,0.5,s,test", line)
    with pytest.raises(LabelledSetError, match=message):
        read_alignments(table)


def test_a_recording_in_two_groups(tmp_path):
    write_wavs(tmp_path, "a.wav")
    table = write_table(tmp_path, "path,start,end,label,group", "a.wav,0,0.5,s,ann", "a.wav,0.5,1,s,bob")
    with pytest.raises(LabelledSetError, match="line 3: a.wav is in ann and in bob"):
        read_alignments(table)


def test_other_columns(tmp_path):
    with pytest.raises(LabelledSetError, match="has the columns path, begin, end, label; expected path, start"):
        read_alignments(write_table(tmp_path, "path,begin,end,label"))


def aligned(tmp_path, **segments):
    """Return a set of one-second recordings, each in the split it is named after."""
    write_wavs(tmp_path, *(f"{split}.wav" for split in segments))
    paths = {split: tmp_path / f"{split}.wav" for split in segments}
    return AlignedSet({paths[split]: found for split, found in segments.items()},
                      {path: split for split, path in paths.items()})


def test_a_frame_has_the_label_at_its_middle(tmp_path):
    """Compares all frame centres, with hops that do and do not coincide with segment boundaries."""
    borders = [0, 0.01, 0.05, 0.0507, 0.11, 0.5, 0.93, 1.0]
    segments = [Segment(start, end, str(i)) for i, (start, end) in enumerate(zip(borders, borders[1:])) if i != 4]
    found = aligned(tmp_path, train=segments, dev=[Segment(0, 0.5, "0")], test=[Segment(0.3, 0.4, "5")])
    for hop in (160, 320, 480, 640):
        frames = draw_frames(found, hop / 16000, most=10_000)
        path = tmp_path / "train.wav"
        labels = {frame.number: label for frame, label in zip(frames.frames, frames.labels) if frame.path == path}
        middles = {number: (2 * number + 1) * hop / 32000 for number in range(-(-16000 // hop))}
        assert labels == {
            number: label for number, middle in middles.items()
            for start, end, label in segments if start <= middle < end
        }
        assert {(frame.path.stem, split) for frame, split in zip(frames.frames, frames.splits)} == {
            (split, split) for split in ("train", "dev", "test")}


def test_draws_are_uniform_and_repeatable(tmp_path):
    found = aligned(tmp_path, train=[Segment(0, 0.6, "s"), Segment(0.6, 1, "t")], dev=[Segment(0, 1, "s")],
                    test=[Segment(0, 1, "t")])
    everything = draw_frames(found, 0.02, most=150)
    assert len(set(everything.frames)) == 150
    drawn = draw_frames(found, 0.02, most=60)
    assert len(set(drawn.frames)) == 60 and drawn == draw_frames(found, 0.02, most=60)
    assert drawn != draw_frames(found, 0.02, most=60, seed=1)
    label_of = dict(zip(everything.frames, everything.labels))
    assert drawn.labels == [label_of[frame] for frame in drawn.frames]
    often = [draw_frames(found, 0.02, most=30, seed=seed).frames.count(RecordingFrame(tmp_path / "train.wav", 0))
             for seed in range(500)]
    assert 60 < sum(often) < 140  # 100 expected, with a standard deviation of 9


def test_segments_past_the_end(tmp_path):
    found = aligned(tmp_path, train=[Segment(0, 0.5, "s"), Segment(0.5, 1.7, "t")], dev=[Segment(0, 1, "s")],
                    test=[Segment(0, 0.9, "t"), Segment(1.2, 1.3, "s")])
    frames = draw_frames(found, 0.02, most=10_000)
    last = {split: max(frame.number for frame, other in zip(frames.frames, frames.splits) if other == split)
            for split in ("train", "test")}
    assert last == {"train": 49, "test": 44}
    in_samples = {name: [Segment(0, 16000, "s")] for name in ("train", "dev", "test")}
    with pytest.raises(LabelledSetError, match="48,000 s in total, but the recordings cover only 3 s"):
        draw_frames(aligned(tmp_path, **in_samples), 0.02, most=100)


def write_timit(root, wav=".WAV", phn=".PHN", case=str.upper):
    """Write one sentence each by a speaker of train, dev and the core test set; return the train speaker's folder."""
    for part, speaker in (("train", "fcjf0"), ("test", "faks0"), ("test", "mdab0")):
        folder = root / "TIMIT" / case(part) / case("dr1") / case(speaker)
        for sentence in ("sa1", "si648", "sx217"):
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / (case(sentence) + wav), "wb") as file:
                soundfile.write(file, np.zeros(16000), 16000, format="NIST")
            phones = ["0 3200 h#", "3200 4800 sh", "4800 6400 ix", "6400 6800 q", "6800 9000 tcl", "9000 16000 h#"]
            (folder / (case(sentence) + phn)).write_text("\n".join(phones) + "\n")
    return root / "TIMIT" / case("train") / case("dr1") / case("fcjf0")


@pytest.mark.parametrize("wav, phn, case", [(".WAV", ".PHN", str.upper), (".wav", ".phn", str.lower),
                                            (".WAV.wav", ".PHN", str.upper)])
def test_timit(tmp_path, wav, phn, case):
    write_timit(tmp_path, wav, phn, case)
    found = read_timit(tmp_path)
    assert len(found.segments) == 6 and not found.skipped
    splits = {(path.parent.name.upper(), path.name[:2].upper()): split for path, split in found.splits.items()}
    assert splits == {(speaker, kind): split for kind in ("SI", "SX")
                      for speaker, split in (("FCJF0", "train"), ("FAKS0", "dev"), ("MDAB0", "test"))}
    for segments in found.segments.values():
        assert segments == [Segment(0, 0.2, "sil"), Segment(0.2, 0.3, "sh"), Segment(0.3, 0.4, "ih"),
                            Segment(0.425, 0.5625, "sil"), Segment(0.5625, 1, "sil")]
    assert all(group == path.parent.name.upper() for path, group in found.groups.items()) and len(found.groups) == 6
    assert set(draw_frames(found, 0.02, 10_000).labels) == {"sil", "sh", "ih"}


def test_timit_in_two_formats_counts_once(tmp_path):
    folder = write_timit(tmp_path)
    (folder / "SI648.WAV.wav").write_bytes((folder / "SI648.WAV").read_bytes())
    assert len(read_timit(tmp_path).segments) == 6


def test_timit_with_sentences_that_have_no_phones(tmp_path):
    damaged = write_timit(tmp_path) / "SX217.PHN"
    damaged.unlink()
    (sentence,) = read_timit(tmp_path).skipped
    assert str(damaged) in sentence
    damaged.write_text("0 3200 h#\n3200 4800\n")
    found = read_timit(tmp_path)
    assert len(found.segments) == 5
    assert found.skipped == [f"{damaged}, line 2: expected a start, an end and a phone, such as '2260 4149 sh'; "
                              "got '3200 4800'"]
    for content, reason in (("", "lists no phones"), ("0 100 xx\n", "got '0 100 xx'"), ("100 100 sh\n", "got '100"),
                            ("0 3200 sh\n1600 4800 iy\n", "overlap")):
        damaged.write_text(content)
        (sentence,) = read_timit(tmp_path).skipped
        assert reason in sentence


def test_no_timit(tmp_path):
    with pytest.raises(LabelledSetError, match="contains no sentences TRAIN/DR1/FCJF0/SI1027.WAV"):
        read_timit(tmp_path)


def test_timits_39_classes():
    assert len(PHONES) == 61 and set(CLASSES) < PHONES
    assert len({CLASSES.get(phone, phone) for phone in PHONES - {UNLABELLED}}) == 39
    assert set(CLASSES.values()) - PHONES == {"sil"}
