"""Features of recordings (averages over time) and of single frames, from every hidden state or from the log-mel."""

import torch
from torch.nn.utils.rnn import pad_sequence

from ..audio import SAMPLE_RATE, batches_by_length, expected_seconds, read_clip
from ..corpora.labelled import Excerpt
from ..devices import send
from ..frames import FrameEncoder
from ..frontend import LogMel
from ..packing import pack
from ..reading import read_ahead, read_all
from ..windows import tokens_to_frames

LOG_MELS_AT_ONCE = 16
# Seconds of audio per batch and per fbank frame of the hop, so that every hop gives batches of equally many tokens.
BATCH_SECS_BY_STRIDE = 12.0


def time_averages(model, recordings, window_secs=None, batch_secs=120.0, report=None, deviations=False,
                  by_audio=False):
    """Return the average over frames of every hidden state of each recording, as SUPERB's heads see them.

    A frame is a column of patches, concatenated from the lowest band up, at the model's own strides. For overlapping
    patches, load the model with ``time_stride=10, frequency_stride=10``. All ceil(n / hop) frames of n samples count,
    as in s3prl's Featurizer under ``ssamba run-downstream``.

    Args:
        model: a SsambaModel on any device. It runs in eval mode; its mode is restored afterwards.
        recordings: paths of audio files (any sampling rate, any number of channels), or Excerpts of them.
        window_secs: window length in seconds. Default: see :meth:`Windowing.for_model`.
        batch_secs: seconds of audio per batch; recordings of similar length are batched together.
        report: called with the AudioError of each unreadable recording, whose averages are NaN. Default: raise it.
        deviations: If True, append the standard deviation over frames to each average, as :func:`log_mel_averages`
            does.
        by_audio: If True, weight each frame by the share of its patches' width that is audio, instead of weighting all
            frames equally. This suits short recordings, whose last frames read zeros past the end: two of 22 frames
            for 0.43 s at a hop of 20 ms.

    Returns:
        (depth + 1, recordings, rows * E), or 2 * rows * E with deviations: float32 on the CPU, layers in network order.

    Raises:
        AudioError: If a recording cannot be read.
        ValueError: If there are no recordings, or the windows exceed the learned positions.
    """
    encoder = FrameEncoder(model, window_secs).to(model.device)
    layers, width = averages_shape(encoder)
    averages = torch.full((len(recordings), layers, width * (1 + deviations)), torch.nan, dtype=torch.float32)
    for batch, found in iterate_time_averages(encoder, recordings, batch_secs, report, deviations, by_audio):
        averages[batch] = found
    return averages.transpose(0, 1)


def averages_shape(encoder):
    """Return (layers, features), the shape of a recording's time averages."""
    return encoder.model.config.num_hidden_layers + 1, encoder.width


@torch.no_grad()
def iterate_time_averages(encoder, recordings, batch_secs=120.0, report=None, deviations=False, by_audio=False):
    """Yield :func:`time_averages` of a FrameEncoder batch by batch, longest recordings first.

    Yields:
        the indices of a batch's readable recordings, and their averages, (indices, depth + 1, width).
    """
    for wavs in iterate_waveforms(encoder, recordings, batch_secs, report):
        yield [*wavs], _averages(encoder, [*wavs.values()], deviations, by_audio)


def iterate_waveforms(encoder, recordings, batch_secs, report=None):
    """Yield a FrameEncoder's input waveforms batch by batch, longest recordings first, with its model in eval mode.

    Yields:
        dict from index to waveform, (samples,) on the model's device, of a batch's readable recordings.
    """
    _check_any(recordings)
    lengths = read_all(lambda excerpt: expected_seconds(excerpt.path, excerpt.start, excerpt.stop),
                       map(_excerpt, recordings))
    model, training = encoder.model, encoder.model.training
    model.eval()
    try:
        for wavs in read_ahead(lambda i: read_waveform(recordings[i], encoder.sampling_rate),
                               batches_by_length(lengths, batch_secs), report, total=len(recordings),
                               desc="hidden states", leave=False):
            yield {i: send(wav, model.device) for i, wav in wavs.items()}
    finally:
        model.train(training)


def log_mel_averages(recordings, report=None):
    """Return the mean and standard deviation over time of the published front end's log-mel, an untrained baseline.

    Args:
        recordings, report: see :func:`time_averages`.

    Returns:
        (1, recordings, 2 * 128) float32: the means, then the standard deviations.

    Raises:
        AudioError: If a recording cannot be read.
        ValueError: If there are no recordings.
    """
    averages = torch.full((len(recordings), 1, 256), torch.nan, dtype=torch.float32)
    for batch, found in iterate_log_mel_averages(recordings, report):
        averages[batch] = found
    return averages.transpose(0, 1)


@torch.no_grad()
def iterate_log_mel_averages(recordings, report=None):
    """Yield :func:`log_mel_averages` one recording at a time, as [index] and (1, 1, 2 * 128)."""
    _check_any(recordings)
    log_mel = LogMel()
    for i, wav in iterate_single_waveforms(recordings, report):
        features = log_mel_of(wav, log_mel)
        yield [i], torch.cat([features.mean(0), features.std(0, correction=0)])[None, None]


@torch.no_grad()
def iterate_frames(encoder, frames, report=None):
    """Yield the hidden states of single frames. Each recording is read once, and only the requested frames are kept.

    The frames are a list of RecordingFrame, numbered at the encoder's hop. For ``report`` see :func:`time_averages`.

    Yields:
        the indices of a batch's existing frames, and their hidden states, (indices, depth + 1, width).
    """
    recordings, members = _by_recording(frames)
    batch_secs = BATCH_SECS_BY_STRIDE * encoder.windowing.time_stride
    for wavs in iterate_waveforms(encoder, recordings, batch_secs, report):
        found = {
            i: [member for member in members[i] if frames[member].number < encoder.windowing.frames(len(wav))]
            for i, wav in wavs.items()
        }
        if any(found.values()):
            numbers = [[frames[member].number for member in present] for present in found.values()]
            yield sum(found.values(), []), _hidden_states(encoder, [*wavs.values()], numbers)


@torch.no_grad()
def iterate_log_mel_frames(frames, time_stride, report=None):
    """Yield the normalised log-mel nearest to the middle of single frames, an untrained baseline.

    The frames are a list of RecordingFrame, numbered at the hop of ``time_stride`` fbank frames.

    Yields:
        the indices of a recording's frames, and their log-mel, (indices, 1, 128).
    """
    log_mel = LogMel()
    recordings, members = _by_recording(frames)
    # An fbank frame is 25 ms long, so the middle of the first is 1.25 fbank frames from the start.
    middle = round(time_stride / 2 - 1.25)
    hop = time_stride * log_mel.front_end.shift_samples
    for i, wav in iterate_single_waveforms(recordings, report):
        features = log_mel_of(wav, log_mel)
        present = [member for member in members[i] if frames[member].number * hop < len(wav)]
        if present:
            places = torch.tensor([frames[member].number * time_stride + middle for member in present])
            yield present, features[places.clamp(0, len(features) - 1), None]


def iterate_single_waveforms(recordings, report=None):
    """Yield the index and waveform, (samples,) at 16 kHz, of each readable recording."""
    each = pack([1] * len(recordings), LOG_MELS_AT_ONCE)
    for wavs in read_ahead(lambda i: read_waveform(recordings[i]), each, report, total=len(recordings), desc="log-mel",
                           leave=False):
        yield from wavs.items()


def log_mel_of(wav, log_mel):
    """Return the log-mel of a waveform, (samples,), of any length: (fbank frames, mel), at least one frame."""
    (features,) = log_mel(log_mel.at_least_one_frame([wav]))
    return features


def read_waveform(recording, sampling_rate=SAMPLE_RATE):
    """Read an audio file or Excerpt as (samples,) float32, channels averaged; see :func:`read_clip`."""
    excerpt = _excerpt(recording)
    wav = read_clip(recording, start=excerpt.start, stop=excerpt.stop, sampling_rate=sampling_rate)
    return (wav * 10 ** (excerpt.gain / 20)).clamp(-1, 1) if excerpt.gain else wav


def _excerpt(recording):
    return recording if isinstance(recording, Excerpt) else Excerpt(recording)


def _averages(encoder, wavs, deviations, by_audio):
    """Map waveforms, list of (samples,), to (utterances, depth + 1, width), or twice that width with deviations."""
    layers, index = encoder.tokens(wavs)
    weights = (index[..., 0] >= 0).float()
    if by_audio:
        shares = [encoder.windowing.shares_of_audio(len(wav)) for wav in wavs]
        weights = send(pad_sequence(shares, batch_first=True), index.device)
    weights /= weights.sum(dim=1, keepdim=True)
    frames_of_layers = (tokens_to_frames(tokens, index, encoder.frequency_pooling) for tokens in layers[:-1])
    return torch.stack([_average(frames, weights, deviations) for frames in frames_of_layers], dim=1).cpu()


def _average(frames, weights, deviations):
    """Average (utterances, frames, width) with weights (utterances, frames) that sum to one over frames."""
    mean = _weighted_mean(frames, weights)
    if not deviations:
        return mean
    variance = _weighted_mean((frames - mean.unsqueeze(1)).square(), weights)
    return torch.cat([mean, variance.sqrt()], dim=1)


def _weighted_mean(frames, weights):
    return (weights.unsqueeze(1) @ frames).squeeze(1)


def _check_any(recordings):
    if not recordings:
        raise ValueError("got no recordings; expected at least one audio file")


def _by_recording(frames):
    """Return the frames' recordings, and the indices of each recording's frames."""
    members = {}
    for i, frame in enumerate(frames):
        members.setdefault(frame.path, []).append(i)
    return [*members], [*members.values()]


def _hidden_states(encoder, wavs, numbers):
    """Return (frames, depth + 1, width): the given frames of each waveform, concatenated."""
    layers, index = encoder.tokens(wavs)
    index = torch.cat([row[wanted] for row, wanted in zip(index, numbers)])[None]
    states = [tokens_to_frames(tokens, index, encoder.frequency_pooling)[0] for tokens in layers[:-1]]
    return torch.stack(states, dim=1).cpu()
