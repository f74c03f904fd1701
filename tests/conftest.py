import os

import numpy as np
import pytest
import torch

from helpers.paths import DATA, SHARED_AUDIO

if not torch.cuda.is_available():
    # Triton reads this once, when something first imports it.
    os.environ.setdefault("TRITON_INTERPRET", "1")

import ssamba_upstream  # noqa: E402, F401  (repairs torchaudio for what the tests import)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):  # the keywords include the names of folders
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_terminal_summary(terminalreporter):
    """Print values that tests have recorded, such as the resources of the Triton kernels."""
    recorded = [record for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
                if report.when == "call" for record in report.user_properties]
    if recorded:
        terminalreporter.section("recorded")
    for name, value in recorded:
        terminalreporter.write_line(f"{name}: {value}")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def on_the_cpu(request, monkeypatch):
    """Hide the GPU from tests without a marker for it: runs are compared bit for bit on the CPU."""
    if not any(map(request.node.get_closest_marker, ("gpu", "triton"))):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def set_default_dtype():
    yield torch.set_default_dtype
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def golden():
    """Return a function that loads the golden arrays of a file in tests/data as tensors."""

    def load(name):
        with np.load(DATA / f"{name}.npz") as arrays:
            return {key: torch.from_numpy(arrays[key]) for key in arrays}

    return load


@pytest.fixture(scope="session")
def official_checkpoint():
    """A checkpoint in the published code's format: 4 blocks, E = 32."""
    return DATA / "reduced_d4_e32.safetensors"


@pytest.fixture(scope="session")
def speech():
    """Recordings of spoken digits at 16 kHz, of different lengths."""
    import soundfile
    import torchaudio

    files = sorted((SHARED_AUDIO / "fsdd" / "recordings").glob("*.wav"))[::250]
    if not files:
        pytest.skip("the Free Spoken Digit Dataset is not here (../shared/audio/fsdd)")
    wavs = []
    for file in files:
        wav, rate = soundfile.read(file, dtype="float32")
        wavs.append(torchaudio.functional.resample(torch.from_numpy(wav), rate, 16000))
    return wavs
