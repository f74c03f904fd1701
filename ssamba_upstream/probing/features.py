"""Recordings -> one vector each: the average over time of every hidden state, or of the filterbank."""

import soundfile
import torch
import torch.nn.functional as F
from tqdm import tqdm

from ..audio import batches_by_length, resampler
from ..corpora.labelled import Excerpt
from ..frames import FrameEncoder
from ..frontend import FRAME_LENGTH, LogMel
from ..windows import tokens_to_frames


def time_averages(model, recordings, window_secs=None, batch_secs=120.0):
    """The average over its frames of every hidden state of each recording, as SUPERB's heads see them.

    A frame is a column of patches, one after the other, lowest band first, at the model's own strides: a
    caller who wants overlapping patches loads it with ``time_stride=10, frequency_stride=10``. The frames
    are those that s3prl's Featurizer keeps: of n samples round(n / hop), without the last one of the
    upstream's ceil(n / hop) where less than half of it is there. (It keeps none of a recording shorter than
    half a hop, whose average is then NaN; here it has its only frame.)

    Args:
        model: a SsambaModel, on any device; computes in eval mode, and is left in the mode it was in.
        recordings: paths of audio files of any rate and number of channels, or Excerpts of them.
        window_secs: length of the windows that the network reads. Default: see :meth:`Windowing.for_model`.
        batch_secs: seconds of audio sent through the network at once; recordings of like lengths go together.

    Returns:
        (depth + 1, recordings, rows * E) in float32 on the CPU, the layers in the order of the network.

    Raises:
        ValueError: no recordings, a file that cannot be read or is empty, or windows that the positions
            learned do not reach.
    """
    encoder = FrameEncoder(model, window_secs).to(model.device)
    averages = torch.empty(len(recordings), *averages_shape(encoder))
    for batch, found in iterate_time_averages(encoder, recordings, batch_secs):
        averages[batch] = found
    return averages.transpose(0, 1)


def averages_shape(encoder):
    """(layers, features) of a recording's averages over time."""
    return encoder.model.config.num_hidden_layers + 1, encoder.width


@torch.no_grad()
def iterate_time_averages(encoder, recordings, batch_secs=120.0):
    """:func:`time_averages` of a FrameEncoder batch by batch, longest recordings first.

    Yields:
        the indices of some of the recordings, and their averages, (indices, depth + 1, width).
    """
    _check_any(recordings)
    lengths = [_seconds(recording) for recording in recordings]
    model, training = encoder.model, encoder.model.training
    model.eval()
    try:
        with tqdm(total=len(recordings), desc="hidden states", leave=False, disable=None) as progress:
            for batch in batches_by_length(lengths, batch_secs):
                wavs = [read_waveform(recordings[i]).to(model.device) for i in batch]
                yield batch, _averages(encoder, wavs).cpu()
                progress.update(len(batch))
    finally:
        model.train(training)


def log_mel_averages(recordings):
    """Mean and standard deviation over time of the normalised log-mel: the baseline that has learned nothing.

    Args:
        recordings: see :func:`time_averages`.

    Returns:
        (1, recordings, 2 * 128): the means, then the standard deviations, in float32.

    Raises:
        ValueError: no recordings, or a file that cannot be read or is empty.
    """
    return torch.cat([found for _, found in iterate_log_mel_averages(recordings)]).transpose(0, 1)


@torch.no_grad()
def iterate_log_mel_averages(recordings):
    """:func:`log_mel_averages` one by one: yields [index] and (1, 1, 2 * 128)."""
    _check_any(recordings)
    log_mel = LogMel()
    for i, recording in enumerate(tqdm(recordings, "log-mel", leave=False, disable=None)):
        wav = read_waveform(recording)
        (features,) = log_mel([F.pad(wav, (0, max(0, FRAME_LENGTH - len(wav))))])
        yield [i], torch.cat([features.mean(0), features.std(0, correction=0)])[None, None]


def read_waveform(recording):
    """(samples,) of an audio file or Excerpt: float32 in [-1, 1] at 16 kHz, its channels averaged."""
    excerpt = _excerpt(recording)
    try:
        samples, rate = soundfile.read(
            excerpt.path, start=excerpt.start, stop=excerpt.stop, dtype="float32", always_2d=True
        )
    except soundfile.LibsndfileError as error:
        raise ValueError(f"cannot read {excerpt.path} as audio: {error.error_string}") from error
    if not len(samples):
        raise ValueError(f"{excerpt.path} holds no samples")
    wav = resampler(rate)(torch.from_numpy(samples).mean(dim=1))
    return (wav * 10 ** (excerpt.gain / 20)).clamp(-1, 1) if excerpt.gain else wav


def _excerpt(recording):
    return recording if isinstance(recording, Excerpt) else Excerpt(recording)


def _averages(encoder, wavs):
    """Waveforms, list of (samples,) -> (utterances, depth + 1, width)."""
    layers, index = encoder.tokens(wavs)
    counts = torch.tensor([max(1, round(len(wav) / encoder.windowing.hop)) for wav in wavs], device=index.device)
    counts = counts.unsqueeze(1)
    index[torch.arange(index.shape[1], device=index.device) >= counts] = -1
    sums = (tokens_to_frames(tokens, index, encoder.frequency_pooling).sum(dim=1) for tokens in layers[:-1])
    return torch.stack([total / counts for total in sums], dim=1)


def _seconds(recording):
    excerpt = _excerpt(recording)
    try:
        header = soundfile.info(excerpt.path)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"cannot read {excerpt.path} as audio: {error.error_string}") from error
    return len(range(header.frames)[excerpt.start:excerpt.stop]) / header.samplerate


def _check_any(recordings):
    if not recordings:
        raise ValueError("got no recordings; expected at least one audio file")
