"""Recordings -> one vector each: the average over time of every hidden state, or of the filterbank."""

import functools

import soundfile
import torch
import torch.nn.functional as F
import torchaudio
from tqdm import tqdm

from ..frontend import FRAME_LENGTH, SAMPLE_RATE, LogMel
from ..windows import Windowing, encode, frame_index, tokens_to_frames


@torch.no_grad()
def time_averages(model, paths, window_secs=None, batch_secs=120.0):
    """The average over its frames of every hidden state of each recording, as a frozen upstream gives them.

    A frame is a column of patches, one after the other, lowest band first, at the model's own strides: a
    caller who wants overlapping patches loads it with ``time_stride=10, frequency_stride=10``.

    Args:
        model: a SsambaModel, on any device; computes in eval mode, and is left in the mode it was in.
        paths: audio files of any rate and number of channels.
        window_secs: length of the windows that the network reads. Default: see :meth:`Windowing.for_model`.
        batch_secs: seconds of audio sent through the network at once; recordings of like lengths go together.

    Returns:
        (depth + 1, recordings, rows * E) in float32 on the CPU, the layers in the order of the network.

    Raises:
        ValueError: no paths, a file that cannot be read or is empty, or windows that the positions learned do
            not reach.
    """
    config = model.config
    windowing = Windowing.for_model(config, window_secs)
    log_mel = LogMel(config.num_mel_bins).to(model.device)
    size = config.num_patch_rows * config.hidden_size
    averages = torch.empty(config.num_hidden_layers + 1, len(paths), size)
    training = model.training
    model.eval()
    try:
        with tqdm(total=len(paths), desc="hidden states", leave=False, disable=None) as progress:
            for batch in _batches(paths, batch_secs):
                wavs = [read_waveform(paths[i]).to(model.device) for i in batch]
                averages[:, batch] = _averages(model, windowing, log_mel, wavs).cpu()
                progress.update(len(batch))
    finally:
        model.train(training)
    return averages


@torch.no_grad()
def log_mel_averages(paths):
    """Mean and standard deviation over time of the normalised log-mel: the baseline that has learned nothing.

    Args:
        paths: audio files of any rate and number of channels.

    Returns:
        (1, recordings, 2 * 128): the means, then the standard deviations, in float32.

    Raises:
        ValueError: no paths, or a file that cannot be read or is empty.
    """
    _check_any(paths)
    log_mel = LogMel()
    averages = []
    for path in tqdm(paths, "log-mel", leave=False, disable=None):
        wav = read_waveform(path)
        (features,) = log_mel([F.pad(wav, (0, max(0, FRAME_LENGTH - len(wav))))])
        averages.append(torch.cat([features.mean(0), features.std(0, correction=0)]))
    return torch.stack(averages).unsqueeze(0)


def read_waveform(path):
    """(samples,) of an audio file: float32 in [-1, 1] at 16 kHz, its channels averaged."""
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"cannot read {path} as audio: {error.error_string}") from error
    if not len(samples):
        raise ValueError(f"{path} holds no samples")
    return _resampler(rate)(torch.from_numpy(samples).mean(dim=1))


@functools.cache
def _resampler(rate):
    return torchaudio.transforms.Resample(rate, SAMPLE_RATE)


def _averages(model, windowing, log_mel, wavs):
    """(depth + 1, utterances, rows * E) of waveforms."""
    windows = windowing.cut(wavs, log_mel)
    layers, firsts = encode([window for run in windows for window in run], model)
    index = frame_index(wavs, windows, firsts, windowing, model.config).to(model.device)
    counts = [windowing.frames(len(wav)) for wav in wavs]
    counts = torch.tensor(counts, device=model.device).unsqueeze(1)
    sums = (tokens_to_frames(tokens, index, "concat").sum(dim=1) for tokens in layers[:-1])
    return torch.stack([total / counts for total in sums])


def _batches(paths, seconds):
    """Indices of the paths, longest recordings first, in runs of at most so many seconds, or of one."""
    _check_any(paths)
    lengths = [_seconds(path) for path in paths]
    batch, total = [], 0.0
    for i in sorted(range(len(paths)), key=lengths.__getitem__, reverse=True):
        if batch and total + lengths[i] > seconds:
            yield batch
            batch, total = [], 0.0
        batch.append(i)
        total += lengths[i]
    yield batch


def _seconds(path):
    try:
        return soundfile.info(path).duration
    except soundfile.LibsndfileError as error:
        raise ValueError(f"cannot read {path} as audio: {error.error_string}") from error


def _check_any(paths):
    if not paths:
        raise ValueError("got no paths; expected at least one audio file")
