"""Hidden states in files, and HEAR's API."""

import json
import os

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from helpers.damage import claim_flac_samples, claim_mp3_frames, claim_wav_bytes
from ssamba_upstream import SsambaConfig, SsambaModel, extraction, hear
from ssamba_upstream.checkpoint import save_model
from ssamba_upstream.cli import main
from ssamba_upstream.corpora import manifest
from ssamba_upstream.extraction import ExtractionError, extract
from ssamba_upstream.files import locked
from ssamba_upstream.plugin.expert import UpstreamExpert
from ssamba_upstream.plugin.kept_states import KeptUpstream
from ssamba_upstream.store import HiddenStateStore


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / "small"
    save_model(SsambaModel(SsambaConfig(hidden_size=32, num_hidden_layers=2)), path)
    return path


@pytest.fixture
def recordings(tmp_path):
    random = np.random.default_rng(0)
    folder = tmp_path / "audio"
    (folder / "deeper").mkdir(parents=True)
    lengths = {"a.wav": 16000, "b.flac": 4001, "deeper/a.wav": 25000}
    for name, length in lengths.items():
        soundfile.write(folder / name, 0.1 * random.standard_normal(length), 16000)
    return {folder / name: length for name, length in lengths.items()}


def test_files_hold_the_upstreams_hidden_states(tmp_path, checkpoint, recordings):
    assert extract(recordings, checkpoint, tmp_path / "out", dtype="float32") == (3, 0)
    upstream = UpstreamExpert(checkpoint).eval()
    for recording, length in recordings.items():
        target = tmp_path / "out" / recording.relative_to(tmp_path / "audio").with_suffix(".safetensors")
        found = load_file(target)["hidden_states"]
        wav = torch.from_numpy(soundfile.read(recording, dtype="float32")[0])
        with torch.no_grad():
            expected = torch.cat(upstream([wav])["hidden_states"])
        assert found.shape == (3, -(-length // 1600), 12 * 32)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_chosen_layers_as_numpy(tmp_path, checkpoint, recordings, capsys):
    command = ["extract", str(checkpoint), str(tmp_path / "audio"), "--out", str(tmp_path / "out"), "--layers", "2",
               "--format", "npy"]
    assert main(command) == 0
    assert "wrote 3 files" in capsys.readouterr().out
    found = np.load(tmp_path / "out" / "deeper" / "a.npy")
    assert found.shape == (1, 16, 12 * 32) and found.dtype == np.float32
    assert main(command) == 0
    assert "wrote 0 files" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_hidden_states_are_read_where_s3prl_has_kept_them(tmp_path, checkpoint, recordings, dtype, monkeypatch):
    extract(recordings, checkpoint, tmp_path / "computed", dtype=dtype)
    upstream = UpstreamExpert(checkpoint).eval()
    wavs = [torch.from_numpy(soundfile.read(recording, dtype="float32")[0]) for recording in recordings]
    store = HiddenStateStore(tmp_path / "kept", upstream.description(), dtype)
    KeptUpstream(upstream, store)(wavs)
    monkeypatch.setattr(extraction, "_hidden_states", lambda *_: pytest.fail("everything is there"))
    command = ["extract", str(checkpoint), str(tmp_path / "audio"), "--out", str(tmp_path / "read"), "--dtype", dtype]
    assert main([*command, "--layers", "0", "2", "--cache", str(tmp_path / "kept")]) == 0
    for recording in recordings:
        name = recording.relative_to(tmp_path / "audio").with_suffix(".safetensors")
        computed, read = (load_file(tmp_path / out / name)["hidden_states"] for out in ("computed", "read"))
        torch.testing.assert_close(read, computed[[0, 2]], rtol=1e-3, atol=1e-5)


def test_an_interrupted_extraction_goes_on(tmp_path, checkpoint, recordings, monkeypatch):
    write, written = extraction._write, []

    def interrupted(states, target, file_format):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(target)
        write(states, target, file_format)

    monkeypatch.setattr(extraction, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract(recordings, checkpoint, tmp_path / "out")
    monkeypatch.undo()
    before = written[0].stat().st_mtime_ns
    assert extract(recordings, checkpoint, tmp_path / "out") == (2, 0)
    assert written[0].stat().st_mtime_ns == before
    assert not list((tmp_path / "out").rglob(".*"))


def test_other_settings_need_another_folder(tmp_path, checkpoint, recordings):
    extract(recordings, checkpoint, tmp_path / "out", layers=[1])
    with pytest.raises(ExtractionError, match=r"other settings \(layers\). Choose a new folder"):
        extract(recordings, checkpoint, tmp_path / "out")
    with pytest.raises(ExtractionError, match=r"\(config, time_stride\)"):
        extract(recordings, checkpoint, tmp_path / "out", layers=[1], time_stride=5)
    save_model(SsambaModel(SsambaConfig(hidden_size=32, num_hidden_layers=2)), tmp_path / "other")
    with pytest.raises(ExtractionError, match=r"\(checkpoint\)"):
        extract(recordings, tmp_path / "other", tmp_path / "out", layers=[1])
    assert json.loads((tmp_path / "out" / "extraction.json").read_text())["layers"] == [1]


def test_no_file_stands_for_another_recording(tmp_path, checkpoint, capsys):
    """Two recorders name their files by date, so names collide."""
    sites = [tmp_path / "a" / "20240101.wav", tmp_path / "b" / "20240101.wav"]
    for number, path in enumerate(sites):
        path.parent.mkdir()
        soundfile.write(path, np.random.default_rng(number).uniform(-0.5, 0.5, 8000), 16000)
    command = ["extract", str(checkpoint), "--out", str(tmp_path / "out"), "--format", "npy"]
    assert main([*command, str(tmp_path / "a")]) == 0
    first = (tmp_path / "out" / "20240101.npy").read_bytes()
    assert main([*command, str(tmp_path / "b")]) == 1
    said = capsys.readouterr()
    assert f"was made from {sites[0]}. Extract this one into another folder" in said.err
    assert "already there: 0, skipped: 1" in said.out
    assert (tmp_path / "out" / "20240101.npy").read_bytes() == first
    (tmp_path / "out" / "sources.jsonl").unlink()
    assert main([*command, str(tmp_path / "a")]) == 1
    assert "was made from an unknown recording" in capsys.readouterr().err


def test_a_recording_that_has_changed_is_extracted_again(tmp_path, checkpoint, recordings, monkeypatch):
    changed = tmp_path / "audio" / "a.wav"
    extract(recordings, checkpoint, tmp_path / "out")
    target = tmp_path / "out" / "a.safetensors"
    before, others = load_file(target), (tmp_path / "out" / "b.safetensors").stat().st_mtime_ns
    soundfile.write(changed, np.random.default_rng(5).uniform(-0.5, 0.5, 16000), 16000)
    os.utime(changed, ns=(0, 1))

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(extraction, "_write", interrupted)
        extract(recordings, checkpoint, tmp_path / "out")
    assert extract(recordings, checkpoint, tmp_path / "out") == (1, 0)
    assert not torch.equal(load_file(target)["hidden_states"], before["hidden_states"])
    assert (tmp_path / "out" / "b.safetensors").stat().st_mtime_ns == others
    assert extract(recordings, checkpoint, tmp_path / "out") == (0, 0)


def test_one_process_at_a_time_writes_into_a_folder(tmp_path, checkpoint, recordings, capsys):
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"):
        assert main(["extract", str(checkpoint), str(tmp_path / "audio"), "--out", str(tmp_path / "out")]) == 1
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]
    assert f"another process is writing {tmp_path / 'out'}. Wait" in capsys.readouterr().err


def test_recordings_that_cannot_be_read_are_named_and_the_others_extracted(tmp_path, checkpoint, recordings):
    (tmp_path / "audio" / "torn.wav").write_bytes(b"RIFF")
    soundfile.write(tmp_path / "audio" / "empty.wav", np.zeros(0), 16000)
    said = []
    everything = [*recordings, tmp_path / "audio" / "torn.wav", tmp_path / "audio" / "empty.wav"]
    assert extract(everything, checkpoint, tmp_path / "out", report=said.append) == (3, 2)
    names = [sentence.split(" is skipped")[0].rpartition("/")[2] for sentence in said]
    assert sorted(names) == ["empty.wav", "torn.wav"]


@pytest.mark.parametrize("changes, message", [
    ({"layers": [3]}, r"layers must be from 0 to 2; got \[3\]"),
    ({"recordings": []}, "no recordings"),
    ({"file_format": "mat"}, "must be one of safetensors, npy"),
    ({"recordings": ["a.wav", "a.flac"]}, "differ only in their extension"),
])
def test_what_cannot_be_asked_for(tmp_path, checkpoint, changes, message):
    with pytest.raises(ExtractionError, match=message):
        extract(**{"recordings": ["a.wav"], "checkpoint": checkpoint, "out": tmp_path / "out", **changes})


def test_no_recording_ends_the_extraction_of_the_others(tmp_path, checkpoint, recordings, capsys):
    folder, noise = tmp_path / "audio", np.random.default_rng(1).uniform(-0.5, 0.5, 16000)
    soundfile.write(folder / "long.mp3", noise, 16000)
    claim_mp3_frames(folder / "long.mp3", 2 ** 32 - 1)
    soundfile.write(folder / "longer.flac", noise, 16000)
    claim_flac_samples(folder / "longer.flac", 10 ** 9)
    soundfile.write(folder / "loud.wav", np.full(16000, 1e30, np.float32), 16000, subtype="FLOAT")
    soundfile.write(folder / "piped.wav", noise, 16000)
    claim_wav_bytes(folder / "piped.wav", 0)
    soundfile.write(folder / "other.aiff", noise, 16000)
    assert main(["extract", str(checkpoint), str(folder), "--out", str(tmp_path / "out"), "--format", "npy"]) == 1
    said, left_out = capsys.readouterr()
    assert {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.npy")} == {
        "a.npy", "b.npy", "deeper/a.npy", "long.npy", "piped.npy", "other.npy"}
    assert {line.split(" is skipped: ")[0] for line in left_out.splitlines() if " is skipped: " in line} == {
        str(folder / "longer.flac"), str(folder / "loud.wav")}
    assert "wrote 6 files" in said and "already there: 0, skipped: 2" in said
    assert np.array_equal(np.load(tmp_path / "out" / "piped.npy"), np.load(tmp_path / "out" / "other.npy"))


def test_hidden_states_beyond_float16_are_left_out(tmp_path, checkpoint, recordings, monkeypatch):
    compute = extraction._hidden_states

    def of_a_loud_flac(encoder, wavs):
        loud = recordings[tmp_path / "audio" / "b.flac"]
        return [states * (1e6 if len(wav) == loud else 1) for wav, states in zip(wavs, compute(encoder, wavs))]

    monkeypatch.setattr(extraction, "_hidden_states", of_a_loud_flac)
    said = []
    assert extract(recordings, checkpoint, tmp_path / "out", dtype="float16", report=said.append) == (2, 1)
    (sentence,) = said
    assert sentence.endswith("b.flac is skipped: its hidden states exceed the range of float16; extract float32")
    assert extract(recordings, checkpoint, tmp_path / "whole", dtype="float32") == (3, 0)
    again = extract(recordings, checkpoint, tmp_path / "through", dtype="float16", report=said.append,
                    cache=tmp_path / "kept")
    assert again == (2, 1)
    assert said[1].endswith("b.flac is skipped: its hidden states exceed the range of float16; extract float32")


@pytest.mark.filterwarnings("ignore:the network's hidden states are NaN")
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_hidden_states_that_are_not_finite_are_left_out(tmp_path, recordings, dtype):
    model = SsambaModel(SsambaConfig(hidden_size=32, num_hidden_layers=2))
    with torch.no_grad():
        model.layers[1].norm.weight[0] = torch.nan
    save_model(model, tmp_path / "unsound")
    said = []
    assert extract(recordings, tmp_path / "unsound", tmp_path / "out", dtype=dtype, report=said.append) == (0, 3)
    assert {sentence.split(" is skipped: ")[1] for sentence in said} == {
        "its hidden states are NaN or infinite; check the checkpoint's weights"}


def test_folders_that_cannot_be_searched_are_named(tmp_path, checkpoint, recordings, capsys, monkeypatch):
    monkeypatch.setattr(manifest, "find_audio",
                        lambda folders: ([*recordings], [f"{folders[0]}/locked: Permission denied"]))
    assert main(["extract", str(checkpoint), str(tmp_path / "audio"), "--out", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert "wrote 3 files" in captured.out and "locked: Permission denied" in captured.err


@pytest.mark.parametrize("seconds", [1.07, 1.98, 4.0])
def test_hear_timestamps(checkpoint, seconds):
    """HEAR's validator makes the same assertions."""
    model = hear.load_model(str(checkpoint))
    audio = 2 * torch.rand(2, int(seconds * model.sample_rate)) - 1
    embeddings, timestamps = hear.get_timestamp_embeddings(audio, model)
    assert embeddings.dtype == torch.float32 and embeddings.shape[2] == model.timestamp_embedding_size
    assert embeddings.shape[:2] == timestamps.shape
    assert torch.equal(timestamps[0].diff(), torch.full((timestamps.shape[1] - 1,), 50.0))
    assert 1000 * seconds - 50 <= timestamps.max() <= 1000 * seconds
    scenes = hear.get_scene_embeddings(audio, model)
    assert scenes.shape == (2, model.scene_embedding_size)
    assert torch.equal(hear.get_scene_embeddings(audio.flip(1).numpy()[:, ::-1], model), scenes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_hear_of_another_dtype(checkpoint, set_default_dtype, dtype):
    audio = 2 * torch.rand(2, 40 * 800) - 1
    expected, timestamps = hear.get_timestamp_embeddings(audio, hear.load_model(str(checkpoint)))
    models = [hear.load_model(str(checkpoint)).to(dtype)]
    set_default_dtype(dtype)
    models.append(hear.load_model(str(checkpoint)))
    for model in models:
        embeddings, found = hear.get_timestamp_embeddings(audio, model)
        assert embeddings.dtype == torch.float32 and torch.equal(found, timestamps)
        assert (embeddings - expected).norm() < 0.01 * expected.norm()


def test_hear_timestamps_of_narrow_patches(tmp_path):
    save_model(SsambaModel(SsambaConfig(hidden_size=32, num_hidden_layers=2, patch_size=[64, 4])), tmp_path / "narrow")
    _, timestamps = hear.get_timestamp_embeddings(torch.rand(1, 16000), hear.load_model(str(tmp_path / "narrow")))
    assert timestamps[0].diff().unique().tolist() == [40.0]


def test_hear_timestamps_are_the_middle_of_what_was_read(checkpoint):
    """A click changes the columns that contain it; their timestamps are centred on it, within half a column."""
    model = hear.load_model(str(checkpoint))
    column = model.encoder.model.patch_embed
    seen = []
    handle = column.register_forward_hook(lambda module, inputs, output: seen.append(output))
    audio = torch.zeros(2, 32000)
    audio[1, 16000] = 1  # at 1000 ms
    hear.get_timestamp_embeddings(audio, model)
    handle.remove()
    silence, click = seen[0].unflatten(0, (2, -1))  # (columns, E, rows, 1) of each sound
    changed = (click - silence).abs().amax(dim=(1, 2, 3)).nonzero().flatten() * 50
    assert (changed.min() + changed.max()) / 2 == 1000
    assert 1000 - changed.min() <= 87.5


def test_hear_takes_batches_only(checkpoint):
    with pytest.raises(ValueError, match=r"audio must be \(sounds, samples\); got \(16000,\)"):
        hear.get_timestamp_embeddings(torch.zeros(16000), hear.load_model(str(checkpoint)))
