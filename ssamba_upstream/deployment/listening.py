"""Streaming classification: labels from a causal classifier as audio arrives."""

import numpy as np
import torch

from ..audio import read_header
from ..frames import FrameEncoder
from .recordings import THRESHOLD, WindowClassifier, _windows


class Listener:
    """A streaming classifier: a fine-tuned causal classifier, of clips or of seconds, applied at every frame.

    The head classifies the mean of the most recent frames. It starts when enough frames have arrived, or at the end of
    shorter audio.

    Args:
        folder, device: see :class:`WindowClassifier`, also for errors. A network that is not causal is a ValueError.
        threshold: smallest probability at which a label is reported.
        smooth: length of the averaged frames in seconds, 0 for a single frame. Default: a training clip, or a second.
    """

    def __init__(self, folder, threshold=THRESHOLD, smooth=None, device="cpu"):
        self.classifier, self.threshold = WindowClassifier(folder, device=device), threshold
        encoder = FrameEncoder(self.classifier.model.ssamba).eval()
        self.hop, self.rate = encoder.windowing.hop, encoder.sampling_rate
        self.smooth = max(1, int((self.classifier.span if smooth is None else smooth) * self.rate / self.hop))
        self.stream, self.frames, self.above = encoder.stream(), 0, set()
        self.features = torch.zeros(0, self.classifier.model.config.hidden_size, device=device)

    @torch.no_grad()
    def hear(self, samples=None):
        """Process the next samples.

        Args:
            samples: (samples,) at the classifier's sampling rate, floating-point in [-1, 1] or int16. Default: none,
                which ends the stream and classifies the remaining frames.

        Returns:
            list of (seconds, label, probability) for each label that reaches the threshold, with its frame's end time.
        """
        output = self.stream.finish() if samples is None else self.stream.push(samples)
        columns = output.last_hidden_state[0].unflatten(1, (-1, self.features.shape[1]))
        model = self.classifier.model
        if model.config.final_norm_twice:
            columns = model.ssamba.norm_f(columns)
        self.features = torch.cat([self.features, columns.mean(1)])
        self.frames += len(columns)
        if samples is None and self.frames < self.smooth and self.frames:
            self.features = self.features.mean(0).expand(self.smooth, -1)
        detections = []
        if len(self.features) >= self.smooth:
            means = self.features.unfold(0, self.smooth, 1).mean(2)
            self.features = self.features[len(means) :].clone()
            logits = model._logits(means)
            probabilities = logits.sigmoid() if self.classifier.several else logits.softmax(1)
            for i, scores in enumerate(probabilities.tolist()):
                seconds = (self.frames - len(means) + 1 + i) * self.hop / self.rate
                detections += self._detect(seconds, dict(zip(self.classifier.labels, scores)))
        return detections

    def _detect(self, seconds, scores):
        above = {label for label, score in scores.items() if score >= self.threshold}
        begun, self.above = above - self.above, above
        return [(seconds, label, scores[label]) for label in self.classifier.labels if label in begun]


def recording(path, listener):
    """Return an iterator over an audio file's samples at a listener's sampling rate, in parts of 100 frames."""
    part = 100 * listener.hop
    return (wav for _, wav in _windows(path, read_header(path), part, listener.rate, part / listener.rate))


def raw_samples(file, listener):
    """Yield raw PCM (16-bit little-endian mono) from a binary file as it arrives, one frame's samples at a time."""
    while len(data := file.read(2 * listener.hop)) > 1:
        yield np.frombuffer(data[: len(data) // 2 * 2], "<i2")


def microphone(listener):
    """Yield samples from the default microphone, one frame's at a time, through the package sounddevice."""
    import sounddevice

    with sounddevice.RawInputStream(listener.rate, listener.hop, channels=1, dtype="int16") as stream:
        while True:
            yield np.frombuffer(stream.read(listener.hop)[0], np.int16)
