"""Features of single frames: one vector each, from every hidden state or from the filterbank."""

import torch

from ..frontend import LogMel
from ..windows import tokens_to_frames
from .features import iterate_single_waveforms, iterate_waveforms, log_mel_of

# Seconds of audio per batch and per fbank frame of the hop, so that every hop gives batches of equally many tokens.
BATCH_SECS_BY_STRIDE = 12.0


@torch.no_grad()
def iterate_frames(encoder, frames, report=None):
    """Yield the hidden states of single frames. Each recording is read once, and only the requested frames are kept.

    Args:
        encoder: a FrameEncoder.
        frames: list of RecordingFrame, numbered at the encoder's hop.
        report: called with the AudioError of each unreadable recording. Default: raise it.

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

    Args:
        frames: list of RecordingFrame, numbered at the hop of ``time_stride`` fbank frames.
        report: see :func:`iterate_frames`.

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
