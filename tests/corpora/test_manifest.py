"""Manifests: writing them from folders of audio, and reading every format in use."""

import hashlib
import json
import os
import pickle
import tracemalloc

import numpy as np
import pytest
import soundfile

from helpers.damage import claim_flac_samples, claim_mp3_frames, claim_wav_bytes
from helpers.paths import SHARED_AUDIO
from ssamba_upstream.audio import read_clip
from ssamba_upstream.cli import main
from ssamba_upstream.corpora import manifest
from ssamba_upstream.corpora.manifest import ManifestError, Paths, read_manifest, write_manifest
from ssamba_upstream.files import file_hash


@pytest.fixture
def folder(tmp_path):
    """Five readable files in three folders, an empty file, a damaged file, and a file that is not audio."""
    root = tmp_path / "audio"
    (root / "b" / "deep").mkdir(parents=True)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (4000, 2))
    soundfile.write(root / "b" / "deep" / "stereo.WAV", noise, 8000)
    soundfile.write(root / "z.flac", noise[:, 0], 44100)
    soundfile.write(root / "a.ogg", noise[:, 0], 16000)
    soundfile.write(root / "b" / "c.mp3", noise[:, 0], 48000)
    soundfile.write(root / "b" / "one sample.wav", noise[:1, 0], 16000)
    soundfile.write(root / "b" / "empty.wav", noise[:0, 0], 16000)
    (root / "b" / "damaged.wav").write_bytes(b"RIFF, but nothing of the kind")
    (root / "notes.txt").write_text("no audio")
    return root


def test_scan_lists_every_readable_file_once_and_sorted(folder, tmp_path):
    found = write_manifest([folder, folder / "b"], tmp_path / "new" / "out.jsonl", processes=2)
    lines = [json.loads(line) for line in (tmp_path / "new" / "out.jsonl").read_text().splitlines()]
    assert [line["path"] for line in lines] == [
        str(folder / name) for name in ("a.ogg", "b/c.mp3", "b/deep/stereo.WAV", "b/one sample.wav", "z.flac")]
    assert [(line["rate"], line["channels"]) for line in lines] == [
        (16000, 1), (48000, 1), (8000, 2), (16000, 1), (44100, 1)]
    assert [line["duration"] for line in lines if "mp3" not in line["path"]] == pytest.approx(
        [4000 / 16000, 4000 / 8000, 1 / 16000, 4000 / 44100])
    assert found.files == 5
    assert found.hours == pytest.approx(sum(line["duration"] for line in lines) / 3600)
    report = (tmp_path / "new" / "out.jsonl.unreadable.txt").read_text().splitlines()
    assert report == found.unreadable
    assert len(report) == 2
    assert report[0].startswith(f"{folder / 'b' / 'damaged.wav'}: ")
    assert report[1] == f"{folder / 'b' / 'empty.wav'}: holds no samples"
    assert read_manifest(tmp_path / "new" / "out.jsonl") == [line["path"] for line in lines]


def test_the_command_names_what_it_leaves_out(folder, tmp_path, capsys):
    command = ["manifest", str(folder), "--out", str(tmp_path / "out.jsonl")]
    assert main(command) == 1
    printed = capsys.readouterr()
    assert "5 files, 0.00 hours" in printed.out
    assert f"skipped: 2 unreadable paths, see {tmp_path / 'out.jsonl.unreadable.txt'}" in printed.err
    for name in ("damaged.wav", "empty.wav", "c.mp3", "one sample.wav"):
        (folder / "b" / name).unlink()
    (folder / "a.ogg").unlink()
    (folder / "z.flac").unlink()
    assert main(command) == 0
    assert "1 file, 0.00 hours" in capsys.readouterr().out


def test_what_the_size_cannot_hold_is_unreadable_and_what_a_pipe_left_is_read(tmp_path):
    folder = tmp_path / "audio"
    folder.mkdir()
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16000)
    for name in ("a.mp3", "b.flac", "c.wav", "d.aiff", "e.AIF"):
        soundfile.write(folder / name, noise, 16000, format="AIFF" if name == "e.AIF" else None)
    claim_mp3_frames(folder / "a.mp3", 2 ** 32 - 1)
    claim_flac_samples(folder / "b.flac", 10 ** 9)
    claim_wav_bytes(folder / "c.wav", 0)
    found = write_manifest([folder], tmp_path / "out.jsonl", processes=1)
    assert read_manifest(tmp_path / "out.jsonl") == [str(folder / name) for name in ("c.wav", "d.aiff", "e.AIF")]
    assert found.hours == pytest.approx(3 / 3600)
    assert [line.split(": ")[0] for line in found.unreadable] == [str(folder / "a.mp3"), str(folder / "b.flac")]
    assert all("samples, which it does not have" in line for line in found.unreadable)


def test_scan_writes_absolute_paths_and_no_report_without_need(folder, tmp_path, monkeypatch):
    (tmp_path / "out.jsonl.unreadable.txt").write_text("of a call before")
    monkeypatch.chdir(folder)
    write_manifest(["b/deep"], tmp_path / "out.jsonl", processes=1)
    assert read_manifest(tmp_path / "out.jsonl") == [str(folder / "b" / "deep" / "stereo.WAV")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audio", "out.jsonl"]


def test_scan_without_use_says_what_to_do(folder, tmp_path):
    out = tmp_path / "out.jsonl"
    with pytest.raises(ManifestError, match="nowhere: not a folder. Give the folders"):
        write_manifest([folder, tmp_path / "nowhere"], out)
    (tmp_path / "bare").mkdir()
    with pytest.raises(ManifestError, match=r"no \.wav, \.flac, .*, \.aifc file in .*bare"):
        write_manifest([tmp_path / "bare"], out)
    (tmp_path / "bare" / "damaged.wav").write_bytes(b"RIFF")
    with pytest.raises(ManifestError, match="none of 1 audio files can be read; the first: .*damaged.wav: "):
        write_manifest([tmp_path / "bare"], out, processes=1)
    with pytest.raises(ManifestError, match=r"out.txt: a manifest's name must end in \.jsonl"):
        write_manifest([folder], tmp_path / "out.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audio", "bare"]


@pytest.mark.parametrize("where", ["reading", "writing"])
def test_an_interrupted_scan_leaves_the_manifest_before_it(folder, tmp_path, monkeypatch, where):
    (tmp_path / "out.jsonl").write_text("of a call before")

    def interrupt(*args):
        raise KeyboardInterrupt

    if where == "reading":
        monkeypatch.setattr(manifest, "zip", interrupt, raising=False)
    else:
        monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_manifest([folder], tmp_path / "out.jsonl", processes=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audio", "out.jsonl"]
    assert (tmp_path / "out.jsonl").read_text() == "of a call before"


def test_paths_are_a_sequence():
    names = ["/a/1.wav", "", "/b/\u00e9.wav", os.fsdecode(b"caf\xe9.wav")]
    paths = Paths(names)
    assert paths == names and paths != names[1:] and len(paths) == 4 and [*paths] == names
    assert (paths[0], paths[-1], paths[1::2]) == (names[0], names[-1], names[1::2])
    assert pickle.loads(pickle.dumps(paths)) == names and not Paths()
    with pytest.raises(IndexError):
        paths[4]


def test_names_that_are_no_unicode_come_back(tmp_path):
    (tmp_path / "audio").mkdir()
    name = tmp_path / "audio" / os.fsdecode(b"caf\xe9.wav")
    try:
        name.with_stem(os.fsdecode(b"damaged \xe9")).write_bytes(b"damaged")
    except OSError:
        pytest.skip("this file system takes no such name")
    soundfile.write(os.fsencode(name), np.full(10, 0.5), 16000, format="WAV")
    found = write_manifest([tmp_path / "audio"], tmp_path / "out.jsonl", processes=1)
    assert (found.files, len(found.unreadable)) == (1, 1)
    assert read_manifest(tmp_path / "out.jsonl") == [str(name)]
    assert read_clip(name, 100, "centre").tolist() == [0.5] * 10


def test_the_published_and_the_fairseq_format_are_read(tmp_path):
    published = tmp_path / "published.json"
    published.write_text(json.dumps({"data": [{"wav": "/a/1.flac", "labels": "/m/0"}, {"wav": "/b/2.wav"}]}))
    assert read_manifest(published) == ["/a/1.flac", "/b/2.wav"]
    fairseq = tmp_path / "train.tsv"
    fairseq.write_text("/root\nx/1 a.wav\t16000\n2.wav\t3\n")
    assert read_manifest(str(fairseq)) == ["/root/x/1 a.wav", "/root/2.wav"]


def test_a_published_manifest_is_never_in_memory_as_objects(tmp_path):
    """All entries as objects would take eight times the file's size; keeping only the paths takes less than four."""
    entries = [{"wav": f"/a/{i:06d}.flac", "labels": "/m/0"} for i in range(10_000)]
    (tmp_path / "m.json").write_text(json.dumps({"data": entries}))
    tracemalloc.start()
    try:
        assert len(read_manifest(tmp_path / "m.json")) == 10_000
        assert tracemalloc.get_traced_memory()[1] < 5 * (tmp_path / "m.json").stat().st_size
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name, content, message", [
    ("m.jsonl", '{"path": "/a"}\n\n{"path": ', "m.jsonl, line 3: not JSON"),
    ("m.jsonl", '{"path": "/a"}\n{"wav": "/b"}', 'm.jsonl, line 2: expected an object whose "path" is the path'),
    ("m.jsonl", '["/a"]', "m.jsonl, line 1: expected an object"),
    ("m.jsonl", "\n", "m.jsonl: lists no audio files; `ssamba manifest"),
    ("m.json", '{"data": [\n{"wav": "/a"},]}', "m.json, line 2: not JSON"),
    ("m.json", '{"data": [{"wav": "/a"}, {"wav": 3}]}', 'm.json, entry 2 of data: expected an object whose "wav"'),
    ("m.json", '{"data": ["/a.wav"]}', "m.json, entry 1 of data: expected an object"),
    ("m.json", '[{"wav": "/a"}]', "m.json: expected {\"data\""),
    ("m.json", '{"data": []}', "m.json: lists no audio file"),
    ("m.tsv", "/root\na.wav\t3\nb.wav 3\n", "m.tsv, line 3: expected a path in '/root', a tab and a number of"),
    ("m.tsv", "/root\na.wav\tthree\n", "m.tsv, line 2"),
    ("m.tsv", "/root\n", "m.tsv: lists no audio file"),
    ("m.txt", "/a.wav", r"m.txt: a manifest's name ends in \.jsonl, \.json, \.tsv"),
])
def test_errors_name_file_and_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ManifestError, match=message):
        read_manifest(tmp_path / name)


def test_the_hash_is_that_of_the_content(tmp_path):
    (tmp_path / "m.tsv").write_bytes(b"/root\na\t1\n")
    assert file_hash(tmp_path / "m.tsv") == hashlib.sha256(b"/root\na\t1\n").hexdigest()


def test_real_audio(tmp_path):
    folder = SHARED_AUDIO / "esc10" / "009 - Rooster"
    if not folder.is_dir():
        pytest.skip("ESC-10 is not here (../shared/audio/esc10)")
    found = write_manifest([folder], tmp_path / "out.jsonl", processes=2)
    assert (found.files, found.unreadable) == (40, [])
    assert found.hours == pytest.approx(40 * 5 / 3600, rel=0.2)
