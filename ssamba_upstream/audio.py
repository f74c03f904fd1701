"""Headers and waveforms of audio files; all audio is read through this module."""

import io
import math
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import soundfile

from .packing import pack

# torch and torchaudio take seconds to import. Headers need neither, so they are imported only when a clip is read.

SAMPLE_RATE = 16000
AUDIO_EXTENSIONS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc")

UNKNOWN_LENGTH = 2 ** 63 - 1
"""libsndfile's frame count for files whose header does not give one."""

PIECE = 2 ** 16
"""Samples per channel that are read at once, because a header may claim more than fits into memory."""

LEAD = 10
"""Seconds of MP3 or Vorbis that are decoded before the requested start; this takes about as long as a seek."""

USUAL_DENSITY = 8
"""Samples per byte. A header that claims more is damaged, or belongs to silence or a similar signal."""

LOUDEST = 2.0 ** 31
"""Largest magnitude of 32-bit integers written as floats. Samples far beyond it have no spectrum in float32."""

LOWEST_RATE = 1000
"""Lowest sampling rate in Hz. Real rates are higher; a damaged header with a few Hz would turn seconds into days."""

CROPS = 4
"""Recurring crops of a recording for each crop length by which it exceeds one crop."""

LARGEST_RESAMPLER = 2 ** 24
"""Weights of a resampling filter. Real rates need far fewer; a damaged header can require more than fits into memory.
"""


class AudioError(ValueError):
    """An audio file that cannot be read.

    Attributes:
        file: the path, or open file, as given.
        reason: the reason, without the path.
    """

    def __init__(self, file, reason):
        super().__init__(file, reason)
        self.file, self.reason = file, reason

    def __str__(self):
        name = os.fspath(self.file) if isinstance(self.file, os.PathLike) else self.file
        return f"{name} cannot be read as audio: {self.reason}"


@dataclass(frozen=True)
class AudioHeader:
    """An audio file's header.

    Attributes:
        samples: number of samples per channel, at least one.
        rate: sampling rate in Hz.
        channels: number of channels.
    """

    samples: int
    rate: int
    channels: int

    @property
    def duration(self):
        """Duration in seconds."""
        return self.samples / self.rate


def read_header(path) -> AudioHeader:
    """Return the header of an audio file; an implausible length is verified.

    Raises:
        AudioError: If it is not an audio file, has no samples, does not give their number, claims more than it has, or
            has a sampling rate that cannot be converted to 16 kHz.
    """
    with _opened(path) as audio:
        if not audio.frames:
            raise ValueError("holds no samples")
        _check_rate(audio.samplerate)
        likely = audio.frames * audio.channels <= USUAL_DENSITY * os.path.getsize(path)
        if not likely and not _has_last_sample(audio):
            raise ValueError(f"its header claims {audio.frames:,} samples, which it does not have; re-encode it")
        return AudioHeader(audio.frames, audio.samplerate, audio.channels)


def read_clip(file, samples=None, crop="centre", start=0, stop=None, sampling_rate=SAMPLE_RATE, repeating=False):
    """Return at most ``samples`` samples of an audio file as mono float32, channels averaged.

    Only the needed part is read and resampled. If the header claims more samples than the file has, only the existing
    ones count.

    Args:
        file: path, or open binary file.
        samples: maximum length in samples at ``sampling_rate``. Default: the whole file.
        crop: part of a longer file: ``"centre"``, ``"start"``, or a random.Random or numpy Generator that draws it
            uniformly.
        start, stop: range of the file to use, in samples at its own rate. Default: the whole file.
        sampling_rate: sampling rate of the result in Hz.
        repeating: If True, random crops start at the positions of :func:`crop_starts`, so that they recur.

    Returns:
        (samples,) float32.

    Raises:
        AudioError: If the file cannot be read, has no samples, or has samples that are not finite or exceed 2**31 times
            full scale.
    """
    with _opened(file) as audio:
        _check_rate(audio.samplerate, sampling_rate)
        part = range(audio.frames)[start:stop]
        wanted = len(part) if samples is None else math.ceil(samples * audio.samplerate / sampling_rate)
        return _resampled(_read_part(audio, part, wanted, crop, repeating), audio.samplerate, sampling_rate, samples)


def read_windows(path, starts, samples, sampling_rate=SAMPLE_RATE):
    """Yield parts of an audio file, each as :func:`read_clip` returns it.

    Parts that overlap or adjoin are decoded in one pass, each sample once, because a seek in a long MP3 file takes
    longer than decoding a part.

    Args:
        path: path of the file.
        starts: starts of the parts, ascending, in samples at the file's own rate.
        samples: maximum length of a part in samples at ``sampling_rate``.
        sampling_rate: sampling rate of the result in Hz.

    Yields:
        (samples,) float32, shorter at the end of the file.

    Raises:
        AudioError: see :func:`read_clip`; earlier parts have been yielded.
    """
    rate = read_header(path).rate
    wanted = math.ceil(samples * rate / sampling_rate)
    for run in _runs(starts, wanted):
        with _opened(path) as audio:
            _check_rate(rate, sampling_rate)
            begin, held = run[0], _read(audio, run[0], wanted)
            for start in run:
                held = held[start - begin:]
                held = np.concatenate([held, _read_on(audio, wanted - len(held))])
                begin = start
                yield _resampled(held, rate, sampling_rate, samples)


def crop_starts(first, last, length):
    """Return the samples at which a recording's crops start: evenly spaced from the first to the last possible start,
    with CROPS intervals per crop length."""
    count = 1 + -(-CROPS * (last - first) // length)
    return sorted({round(start) for start in np.linspace(first, last, count)})


def why_unreadable(error, file=None):
    """Return the reason for an exception while reading audio, without the path; ``file`` is its path, if any."""
    if isinstance(file, (str, os.PathLike)) and not os.access(file, os.R_OK):
        return "does not exist or is not readable"
    reason = getattr(error, "error_string", None) or getattr(error, "strerror", None)
    return reason or str(error.args[0] if error.args else type(error).__name__)


@contextmanager
def _opened(file):
    """Open an audio file; turn errors while opening or reading it into AudioErrors."""
    try:
        with _open(file) as audio:
            if audio.frames == UNKNOWN_LENGTH:
                raise ValueError("its header does not give its length; re-encode it")
            yield audio
    except (OSError, RuntimeError, ValueError, MemoryError) as error:
        raise AudioError(file, why_unreadable(error, file)) from error


class _SoundFile(soundfile.SoundFile):
    """An audio file that can be read without soundfile's seek to the current position before each read."""

    reads_without_seek = False

    def seekable(self):
        return not self.reads_without_seek and super().seekable()


def _open(file):
    audio = _SoundFile(file if hasattr(file, "read") else os.fsencode(file))
    if audio.frames or not audio.format.startswith("WAV"):
        return audio
    audio.close()
    if hasattr(file, "read"):
        file.seek(0)
        content = file.read()
    else:
        with open(file, "rb") as stream:
            content = stream.read()
    return _SoundFile(io.BytesIO(_fill_in_length(content)))


def _fill_in_length(content):
    """Return the bytes of a wav file whose data chunk has the length 0. If a pipe left it so and there are samples, the
    length is set to the value that libsndfile reads as the rest of the file."""
    place = 12
    while content[place:place + 4] not in (b"data", b""):
        place = _after_chunk(content, place)
    samples = place + 8
    if content[:4] != b"RIFF" or content[place + 4:samples] != bytes(4) or _are_chunks(content, samples):
        return content
    return content[:place + 4] + b"\xff" * 4 + content[samples:]


def _are_chunks(content, place):
    """Return True if the content from a place on consists of whole named chunks, such as one with a title."""
    while place < len(content):
        if not re.fullmatch(rb"[ -~]{4}", content[place:place + 4]):
            return False
        place = _after_chunk(content, place)
    return place - len(content) in (0, 1)  # the last may lack its padding byte


def _after_chunk(content, place):
    size = int.from_bytes(content[place + 4:place + 8], "little")
    return place + 8 + size + size % 2


def _has_last_sample(audio):
    try:
        audio.seek(audio.frames - 1)
        return len(audio.read(1)) == 1
    except soundfile.LibsndfileError:
        return False


def _resampled(clip, rate, sampling_rate, samples=None):
    """Return an array (samples,) at a rate as a tensor at the sampling rate, cut to ``samples``."""
    import torch

    clip = torch.from_numpy(clip)
    if not len(clip):
        raise ValueError("holds no samples")
    if rate != sampling_rate:
        clip = resampler(rate, sampling_rate)(clip)[:samples]
    loudest = clip.abs().max()
    if not loudest.isfinite():
        raise ValueError("holds samples that are not finite")
    if loudest > LOUDEST:
        raise ValueError(f"holds samples of up to {loudest:.1e}, where 1 is full scale")
    return clip


def _read_part(audio, part, wanted, crop, repeating):
    """Read ``wanted`` samples from a part of the file, or all of the part if it has fewer."""
    draw = None if isinstance(crop, str) else crop.random()

    def first(length):
        spare = max(0, length - wanted)
        if draw is not None and repeating:
            starts = crop_starts(0, spare, wanted)
            return starts[int(draw * len(starts))]
        return {"start": 0, "centre": spare // 2}[crop] if draw is None else int(draw * (spare + 1))

    start, count = first(len(part)), min(wanted, len(part))
    clip = _read(audio, part.start + start, count)
    if len(clip) < count and start and audio.seekable():
        # The header claims more than there is.
        whole = _read(audio, part.start, len(part))
        start = first(len(whole))
        clip = whole[start:start + wanted]
    return clip


def _read(audio, start, count):
    """Return the mean of the channels, (samples,): ``count`` samples from a start, or all that exist."""
    lead = _lead(audio, start)
    with _damage_told(audio):
        if audio.seekable():
            audio.seek(start - lead)
    return _read_on(audio, lead + count)[lead:]


def _lead(audio, start):
    """Return the number of samples before a start at which decoding must begin.

    An MP3 frame uses bits of earlier frames, so just after a seek the decoded samples are garbled, and libmpg123 writes
    to stderr that bits are missing. In the last page of a Vorbis file, which may last several seconds, libsndfile seeks
    to a wrong position.
    """
    if not audio.seekable():
        return start
    if not audio.subtype.startswith(("MPEG", "VORBIS")):
        return 0
    return min(start, LEAD * audio.samplerate)


def _read_on(audio, count):
    """Return the mean of the channels, (samples,): the next ``count`` samples, or all that remain."""
    pieces, left = [], count
    audio.reads_without_seek = audio.subtype.startswith("MPEG")  # a seek can garble MP3
    try:
        with _damage_told(audio):
            while not pieces or left and len(pieces[-1]) == PIECE:
                pieces.append(audio.read(min(left, PIECE), dtype="float32", always_2d=True).mean(axis=1))
                left -= len(pieces[-1])
    finally:
        audio.reads_without_seek = False
    return np.concatenate(pieces)


def _runs(starts, length):
    """Yield lists of starts of parts of this length, in which each part starts no later than the previous one ends."""
    run = []
    for start in starts:
        if run and start > run[-1] + length:
            yield run
            run = []
        run.append(start)
    if run:
        yield run


@contextmanager
def _damage_told(audio):
    try:
        yield
    except soundfile.LibsndfileError as error:
        raise ValueError(f"is damaged, or shorter than the {audio.frames:,} samples that its header claims "
                         f"({error.error_string})") from error


def identity(path):
    """Return a list that identifies an audio file and its version: absolute path, size in bytes and modification time
    in nanoseconds. If there is no such file, raise an AudioError."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise AudioError(path, why_unreadable(error, path)) from error
    return [os.path.abspath(path), status.st_size, status.st_mtime_ns]


def expected_seconds(path, start=0, stop=None):
    """Return the duration in seconds of an audio file, or of a part as in :func:`read_clip`, from its header; infinite
    if unreadable."""
    try:
        header = read_header(path)
    except AudioError:
        return math.inf
    return len(range(header.samples)[start:stop]) / header.rate


def batches_by_length(lengths, seconds):
    """Yield lists of indices of recordings, longest first, given their lengths in seconds. A list lasts at most
    ``seconds``, or has a single recording."""
    return pack(lengths, seconds, sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True))


@lru_cache(maxsize=32)
def resampler(rate, wanted):
    """Return a resampler from one sampling rate in Hz to another."""
    from torchaudio.transforms import Resample

    return Resample(rate, wanted)


def _check_rate(rate, wanted=SAMPLE_RATE):
    weights = rate * wanted // math.gcd(rate, wanted) ** 2
    if rate < LOWEST_RATE or weights > LARGEST_RESAMPLER:
        raise ValueError(f"a sampling rate of {rate} Hz cannot be converted to {wanted} Hz; resample the file first")
