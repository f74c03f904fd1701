"""Audio files -> headers and waveforms. Whatever else reads audio files asks here."""

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

# torch and torchaudio, which take seconds to import, are imported where a clip is read: headers need neither.

SAMPLE_RATE = 16000
AUDIO_EXTENSIONS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc")

UNKNOWN_LENGTH = 2 ** 63 - 1
"""The frames of a file whose header leaves them open, as libsndfile counts them."""

PIECE = 2 ** 16
"""Samples of each channel that are read at once: a header may promise more than there is memory."""

LEAD = 10
"""Seconds of MP3 or Vorbis that are decoded before what is wanted, in about the time of a seek."""

USUAL_DENSITY = 8
"""Samples in a byte. A header that promises more is right for silence and the like, or damaged."""

LOUDEST = 2.0 ** 31
"""Integers of 32 bits that were written as floats. What is far beyond has no spectrum in float32."""

LOWEST_RATE = 1000
"""In Hz. Real rates are higher; a damaged header's few Hz make days out of seconds."""

CROPS = 4
"""Crops of a recording from which training draws, for each length of a crop that the recording exceeds it by, where
crops repeat."""

LARGEST_RESAMPLER = 2 ** 24
"""Weights of a resampling filter. Real rates need far fewer; a damaged header can ask for more than there is memory."""


class AudioError(ValueError):
    """An audio file that cannot be read.

    Attributes:
        file: the path, or open file, as it was given.
        reason: why it cannot be read, without the path.
    """

    def __init__(self, file, reason):
        super().__init__(file, reason)
        self.file, self.reason = file, reason

    def __str__(self):
        name = os.fspath(self.file) if isinstance(self.file, os.PathLike) else self.file
        return f"{name} cannot be read as audio: {self.reason}"


@dataclass(frozen=True)
class AudioHeader:
    """What an audio file says of itself.

    Attributes:
        samples: of each channel, one or more.
        rate: in Hz.
        channels: their number.
    """

    samples: int
    rate: int
    channels: int

    @property
    def duration(self):
        """In seconds."""
        return self.samples / self.rate


def read_header(path) -> AudioHeader:
    """The header of an audio file, which is not taken at its word where that is unlikely.

    Raises:
        AudioError: no audio file, or one that holds no samples, does not say how many, or says more than there are; or
            of a rate that cannot be brought to 16 kHz.
    """
    with _opened(path) as audio:
        if not audio.frames:
            raise ValueError("holds no samples")
        _check_rate(audio.samplerate)
        likely = audio.frames * audio.channels <= USUAL_DENSITY * os.path.getsize(path)
        if not likely and not _has_last_sample(audio):
            raise ValueError(f"its header promises {audio.frames:,} samples, which are not there; encode it anew")
        return AudioHeader(audio.frames, audio.samplerate, audio.channels)


def read_clip(file, samples=None, crop="centre", start=0, stop=None, sampling_rate=SAMPLE_RATE, repeating=False):
    """At most ``samples`` samples of an audio file, as mono float32 at a sampling rate, by default 16 kHz.

    Only what is needed is read and resampled; the mean of the channels is taken. Where the header promises more than
    there is, what there is counts.

    Args:
        file: a path, or an open binary file.
        samples: the longest clip, in samples at that rate. Default: the whole file.
        crop: which part of a longer file: ``"centre"``, ``"start"``, or a random.Random or numpy Generator that draws
            it uniformly.
        start, stop: the part of the file that counts as the file, in samples at its own rate. Default: all of it.
        sampling_rate: of what is returned, in Hz.
        repeating: If True, a drawn crop is one of those of :func:`crop_starts`, so that the same crops come again.

    Returns:
        (samples,) float32.

    Raises:
        AudioError: the file cannot be read, or holds no samples, or some that are not finite or beyond 2**31, where 1
            is full scale.
    """
    with _opened(file) as audio:
        _check_rate(audio.samplerate, sampling_rate)
        part = range(audio.frames)[start:stop]
        wanted = len(part) if samples is None else math.ceil(samples * audio.samplerate / sampling_rate)
        return _resampled(_read_part(audio, part, wanted, crop, repeating), audio.samplerate, sampling_rate, samples)


def read_windows(path, starts, samples, sampling_rate=SAMPLE_RATE):
    """Yield parts of an audio file, each as :func:`read_clip` returns it.

    Parts that overlap or follow each other are decoded in one go, each sample once. In long MP3 files a seek takes
    longer than decoding a part.

    Args:
        path: the file.
        starts: where the parts begin, ascending, in samples at the file's own rate.
        samples: the longest part, in samples at ``sampling_rate``.
        sampling_rate: of what is returned, in Hz.

    Yields:
        (samples,) float32, less at the end of the file.

    Raises:
        AudioError: see :func:`read_clip`; the parts before have been yielded.
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
    """Samples at which the crops of a recording start: evenly spaced, one more than CROPS for each length of a crop
    between the first and the last possible start."""
    count = 1 + -(-CROPS * (last - first) // length)
    return sorted({round(start) for start in np.linspace(first, last, count)})


def why_unreadable(error, file=None):
    """The reason in an exception met while reading audio, without the path; ``file`` is its path, if it has one."""
    if isinstance(file, (str, os.PathLike)) and not os.access(file, os.R_OK):
        return "does not exist, or may not be read"
    reason = getattr(error, "error_string", None) or getattr(error, "strerror", None)
    return reason or str(error.args[0] if error.args else type(error).__name__)


@contextmanager
def _opened(file):
    """An audio file, open; what is wrong with it is an AudioError, whether met on opening it or while it is read."""
    try:
        with _open(file) as audio:
            if audio.frames == UNKNOWN_LENGTH:
                raise ValueError("does not say how long it is; encode it anew")
            yield audio
    except (OSError, RuntimeError, ValueError, MemoryError) as error:
        raise AudioError(file, why_unreadable(error, file)) from error


class _SoundFile(soundfile.SoundFile):
    """An audio file in which the seek to where it is that soundfile adds to each read can be left out."""

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
    """The bytes of a wav file whose samples have the length 0. Where a pipe left it so, and they are there, they get
    the length that libsndfile takes to reach to the file's end."""
    place = 12
    while content[place:place + 4] not in (b"data", b""):
        place = _after_chunk(content, place)
    samples = place + 8
    if content[:4] != b"RIFF" or content[place + 4:samples] != bytes(4) or _are_chunks(content, samples):
        return content
    return content[:place + 4] + b"\xff" * 4 + content[samples:]


def _are_chunks(content, place):
    """Whether there is nothing from a place on but whole chunks, such as those for a title, with their names."""
    while place < len(content):
        if not re.fullmatch(rb"[ -~]{4}", content[place:place + 4]):
            return False
        place = _after_chunk(content, place)
    return place - len(content) in (0, 1)  # the last may lack the byte that makes its length even


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
    """(samples,) of an array at a rate as a tensor at the sampling rate, cut at so many samples."""
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
    """So many samples out of a range of them, or all where it has fewer."""
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
        # The header promises more than there is.
        whole = _read(audio, part.start, len(part))
        start = first(len(whole))
        clip = whole[start:start + wanted]
    return clip


def _read(audio, start, count):
    """The mean of the channels, (samples,): so many from there on, or as many as there are."""
    lead = _lead(audio, start)
    with _damage_told(audio):
        if audio.seekable():
            audio.seek(start - lead)
    return _read_on(audio, lead + count)[lead:]


def _lead(audio, start):
    """How many samples before a start decoding has to begin.

    A frame of MP3 takes bits from those before it: just after a seek, what is decoded is garbled, and libmpg123 writes
    to stderr that bits are missing. In the last page of a Vorbis file, which may last some seconds, libsndfile seeks to
    a wrong place.
    """
    if not audio.seekable():
        return start
    if not audio.subtype.startswith(("MPEG", "VORBIS")):
        return 0
    return min(start, LEAD * audio.samplerate)


def _read_on(audio, count):
    """The mean of the channels, (samples,): the next so many, or as many as there are."""
    pieces, left = [], count
    audio.reads_without_seek = audio.subtype.startswith("MPEG")  # which a seek can garble
    try:
        with _damage_told(audio):
            while not pieces or left and len(pieces[-1]) == PIECE:
                pieces.append(audio.read(min(left, PIECE), dtype="float32", always_2d=True).mean(axis=1))
                left -= len(pieces[-1])
    finally:
        audio.reads_without_seek = False
    return np.concatenate(pieces)


def _runs(starts, length):
    """Yield the starts of parts of this length, those together of which each begins no later than the last one ends."""
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
        raise ValueError(f"is damaged, or shorter than the {audio.frames:,} samples that its header promises "
                         f"({error.error_string})") from error


def identity(path):
    """What tells an audio file from others, and from itself after a change: a list of its absolute path, its size in
    bytes and its time of modification in nanoseconds.

    Raises:
        AudioError: The file does not exist.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise AudioError(path, why_unreadable(error, path)) from error
    return [os.path.abspath(path), status.st_size, status.st_mtime_ns]


def expected_seconds(path, start=0, stop=None):
    """How long an audio file, or a part of it, should last; infinite where only reading it can tell.

    Args:
        path: the file.
        start, stop: see :func:`read_clip`.
    """
    try:
        header = read_header(path)
    except AudioError:
        return math.inf
    return len(range(header.samples)[start:stop]) / header.rate


def batches_by_length(lengths, seconds):
    """Yields indices of recordings, longest first, in runs of at most so many seconds together, or of one.

    Args:
        lengths: of the recordings, in seconds.
        seconds: the longest batch.
    """
    return pack(lengths, seconds, sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True))


@lru_cache(maxsize=32)
def resampler(rate, wanted):
    """From a rate in Hz to another."""
    from torchaudio.transforms import Resample

    return Resample(rate, wanted)


def _check_rate(rate, wanted=SAMPLE_RATE):
    weights = rate * wanted // math.gcd(rate, wanted) ** 2
    if rate < LOWEST_RATE or weights > LARGEST_RESAMPLER:
        raise ValueError(f"a rate of {rate} Hz cannot be brought to {wanted} Hz; resample the file first")
