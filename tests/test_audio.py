"""Headers with excessive, missing or invalid lengths, and the audio read nevertheless."""

import io
import os
import pickle
import random
import subprocess
import sys
import wave

import numpy as np
import pytest
import soundfile
import torch

from helpers.damage import claim_flac_samples, claim_mp3_frames, claim_wav_bytes
from ssamba_upstream import audio
from ssamba_upstream.audio import (
    AUDIO_EXTENSIONS,
    AudioError,
    expected_seconds,
    identity,
    read_clip,
    read_header,
    read_windows,
)


@pytest.fixture
def noise():
    return np.random.default_rng(0).uniform(-0.5, 0.5, 100000).astype(np.float32)


FORMATS = {".ogg": ("OGG", "VORBIS"), ".oga": ("OGG", "VORBIS"), ".opus": ("OGG", "OPUS"), ".aiff": ("AIFF", "PCM_24"),
           ".aif": ("AIFF", "PCM_16"), ".aifc": ("AIFF", "ULAW"), ".mp3": ("MP3", "MPEG_LAYER_III"),
           ".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16")}


@pytest.mark.parametrize("extension", AUDIO_EXTENSIONS)
def test_every_extension_is_that_of_a_format_that_is_read(tmp_path, noise, extension):
    path = tmp_path / f"noise{extension}"
    kind, subtype = FORMATS[extension]
    soundfile.write(path, noise[:48000], 48000, format=kind, subtype=subtype)
    header = read_header(path)
    assert (header.rate, header.channels) == (48000, 1)
    assert header.duration == pytest.approx(1, abs=0.1)
    assert len(read_clip(path)) == pytest.approx(16000, abs=1600)


@pytest.mark.parametrize("claim", [0, 2 ** 32 - 1, 2 ** 31 - 1])
@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_a_wav_that_a_pipe_left_without_its_length_is_read(tmp_path, noise, claim, subtype):
    soundfile.write(tmp_path / "a.wav", noise, 16000, subtype=subtype)
    whole, header = read_clip(tmp_path / "a.wav"), read_header(tmp_path / "a.wav")
    claim_wav_bytes(tmp_path / "a.wav", claim)
    assert read_header(tmp_path / "a.wav") == header
    assert torch.equal(read_clip(tmp_path / "a.wav"), whole)
    assert torch.equal(read_clip(tmp_path / "a.wav", 1000, "centre"), whole[49500:50500])
    assert torch.equal(read_clip(io.BytesIO((tmp_path / "a.wav").read_bytes())), whole)


def test_a_wav_without_samples_is_not_read_into_what_follows_them(tmp_path):
    with wave.open(str(tmp_path / "empty.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
    title = b"LIST" + (17).to_bytes(4, "little") + b"INFOINAM" + (5).to_bytes(4, "little") + b"title"
    for trailer in (b"", title, title + b"\0"):
        (tmp_path / "a.wav").write_bytes((tmp_path / "empty.wav").read_bytes() + trailer)
        with pytest.raises(AudioError, match="a.wav cannot be read as audio: holds no samples"):
            read_header(tmp_path / "a.wav")


def test_an_mp3_gives_what_is_there_whatever_its_header_promises(tmp_path, noise):
    path = tmp_path / "a.mp3"
    soundfile.write(path, noise, 16000)
    whole = read_clip(path)
    claim_mp3_frames(path, 2 ** 32 - 1)
    with pytest.raises(AudioError, match=r"its header claims 2,473,\d+,\d+,\d+ samples, which it does not have; "):
        read_header(path)
    assert expected_seconds(path) == float("inf")
    found = read_clip(path)
    assert len(found) == pytest.approx(len(whole), abs=1152)
    for crop in ("start", "centre", random.Random(0)):
        assert len(read_clip(path, 1000, crop)) == 1000
    torch.testing.assert_close(read_clip(path, 1000, "centre"), found[(len(found) - 1000) // 2:][:1000])


@pytest.mark.parametrize("samples", [10 ** 9, 2 ** 36 - 1])
def test_a_flac_that_promises_what_it_has_not_is_unreadable(tmp_path, noise, samples):
    path = tmp_path / "a.flac"
    soundfile.write(path, noise, 16000)
    claim_flac_samples(path, samples)
    with pytest.raises(AudioError, match=f"claims {samples:,} samples, which it does not have"):
        read_header(path)
    assert len(read_clip(path, 1000, "start")) == 1000
    with pytest.raises(AudioError, match=f"is damaged, or shorter than the {samples:,} samples that its header"):
        read_clip(path)


@pytest.mark.parametrize("extension", [".flac", ".mp3", ".ogg"])
def test_long_silence_in_few_bytes_is_believed(tmp_path, extension):
    path = tmp_path / f"silence{extension}"
    with soundfile.SoundFile(path, "w", 16000, 1) as file:
        for _ in range(120):
            file.write(np.zeros(16000, np.float32))
    assert read_header(path).duration == pytest.approx(120, abs=0.2)


@pytest.mark.parametrize("rate", [1, 999, 16001])
def test_rates_of_no_recording(tmp_path, noise, rate):
    soundfile.write(tmp_path / "a.wav", noise[:1000], rate)
    for read in (read_header, read_clip):
        with pytest.raises(AudioError, match=f"a sampling rate of {rate} Hz cannot be converted to 16000 Hz"):
            read(tmp_path / "a.wav")


def test_samples_beyond_any_spectrum_are_refused(tmp_path, noise):
    for factor in (1, 2.0 ** 15, 2.0 ** 31):
        soundfile.write(tmp_path / "a.wav", factor * noise, 16000, subtype="FLOAT")
        assert read_clip(tmp_path / "a.wav").abs().max() > 0.49 * factor
    soundfile.write(tmp_path / "a.wav", np.full(1000, 1e30, np.float32), 16000, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"holds samples of up to 1.0e\+30, where 1 is full scale"):
        read_clip(tmp_path / "a.wav")


def test_a_part_of_a_file_counts_as_the_file(tmp_path, noise):
    soundfile.write(tmp_path / "a.flac", noise, 16000, subtype="PCM_24")
    whole = read_clip(tmp_path / "a.flac")
    assert torch.equal(read_clip(tmp_path / "a.flac", start=70000, stop=90000), whole[70000:90000])
    assert torch.equal(read_clip(tmp_path / "a.flac", 100, "centre", start=70000), whole[84950:85050])
    with pytest.raises(AudioError, match="holds no samples"):
        read_clip(tmp_path / "a.flac", start=100000)
    assert expected_seconds(tmp_path / "a.flac", 70000, 200000) == 30000 / 16000


@pytest.mark.parametrize("extension", [".wav", ".flac", ".ogg", ".mp3"])
@pytest.mark.parametrize("rate", [16000, 22050])
def test_windows_are_what_is_read_one_by_one(tmp_path, noise, extension, rate):
    path = tmp_path / f"noise{extension}"
    kind, subtype = FORMATS[extension]
    soundfile.write(path, np.stack([noise, noise[::-1]], axis=1), rate, format=kind, subtype=subtype)
    for starts in ([0, 4000, 8000], [5, 1000, 1001, 30_000, 31_000, 60_000, 99_990], [70_000]):
        found = [wav.clone() for wav in read_windows(path, starts, 4000)]
        for start, wav in zip(starts, found, strict=True):
            torch.testing.assert_close(wav, read_clip(path, 4000, "start", start), rtol=0, atol=1e-5)
    windows = read_windows(path, [99_000, 200_000], 4000)
    assert len(next(windows)) <= 1000
    with pytest.raises(AudioError):
        next(windows)


@pytest.mark.slow
@pytest.mark.parametrize("extension", [".ogg", ".mp3"])
def test_a_part_of_a_compressed_file_is_that_of_the_whole(tmp_path, monkeypatch, extension):
    """MP3 is garbled just after a seek, and Vorbis seeks to a wrong place near the end."""
    path, random, rate = tmp_path / f"noise{extension}", np.random.default_rng(0), 16000
    kind, subtype = FORMATS[extension]
    soundfile.write(path, random.uniform(-0.5, 0.5, 31 * rate), rate, format=kind, subtype=subtype)
    whole = soundfile.read(path, dtype="float32")[0]
    monkeypatch.setattr(audio, "PIECE", 1000)
    np.testing.assert_allclose(read_clip(path, sampling_rate=rate), whole, rtol=0, atol=1e-5)
    monkeypatch.undo()
    for start in [*random.integers(0, len(whole) - 400, 40), *range(len(whole) - rate, len(whole) - 400, rate // 20)]:
        part = read_clip(path, start=int(start), stop=int(start) + 400, sampling_rate=rate)
        np.testing.assert_allclose(part, whole[start:start + 400], rtol=0, atol=1e-5)


def test_the_windows_of_an_mp3_are_read_without_a_word(tmp_path, capfd):
    """libmpg123 would write to stderr if a frame after a seek lacked the bits of earlier frames."""
    time = np.arange(20 * 16000) / 16000
    tones = 0.3 * np.sin(2 * np.pi * 440 * time * (1 + 0.1 * np.sin(time))) * (np.sin(3 * time) > 0)
    soundfile.write(tmp_path / "a.mp3", tones, 16000, bitrate_mode="AVERAGE", compression_level=0.5)
    assert len(list(read_windows(tmp_path / "a.mp3", range(0, 300_000, 8000), 16000))) == 38
    assert capfd.readouterr().err == ""


def test_an_identity_tells_a_file_from_others_and_from_itself_after_a_change(tmp_path, monkeypatch):
    (tmp_path / "a.wav").write_bytes(b"one")
    before = identity(tmp_path / "a.wav")
    monkeypatch.chdir(tmp_path)
    assert identity("a.wav") == identity("./a.wav") == before
    os.utime("a.wav", ns=(0, before[2] + 1))
    assert identity("a.wav") == [*before[:2], before[2] + 1]
    with pytest.raises(AudioError, match="b.wav cannot be read as audio: does not exist"):
        identity("b.wav")


def test_the_error_says_which_file_and_why_and_goes_from_process_to_process(tmp_path):
    with pytest.raises(AudioError) as raised:
        read_header(tmp_path / "gone.wav")
    error = pickle.loads(pickle.dumps(raised.value))
    assert error.file == tmp_path / "gone.wav" and error.reason == "does not exist or is not readable"
    assert str(error) == f"{tmp_path / 'gone.wav'} cannot be read as audio: does not exist or is not readable"


@pytest.mark.slow
def test_a_claim_costs_no_memory(tmp_path, noise):
    """The length in the header is never allocated: here it would not fit in memory, and the attempt would fail."""
    soundfile.write(tmp_path / "a.mp3", noise, 16000)
    claim_mp3_frames(tmp_path / "a.mp3", 2 ** 21)  # 4.8 GB as float32
    code = """
import resource, sys
from ssamba_upstream.audio import read_clip
import torch
resource.setrlimit(resource.RLIMIT_DATA, (3 * 2 ** 30,) * 2)
print(len(read_clip(sys.argv[1])))
"""
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "a.mp3"], capture_output=True, text=True,
                         env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) >= 100000
