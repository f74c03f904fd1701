"""A causal classifier that listens: what it hears in audio as it arrives."""

import numpy as np
import torch

from ..audio import read_header
from ..frames import FrameEncoder
from .recordings import THRESHOLD, WindowClassifier, _windows


class Listener:
    """A fine-tuned causal classifier, of clips or of seconds, that judges each frame with those before it.

    The head reads the mean of the last frames, as many as it was trained to average. It begins when there are so many,
    or with the end of what is shorter.

    Args:
        folder, device: see :class:`WindowClassifier`, also for errors. A network that is not causal is a ValueError.
        threshold: the probability from which on a class counts as heard.
        smooth: seconds of frames that the head averages, or 0 for a single frame. Default: a clip, or a second.
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
        """Hear the next samples.

        Args:
            samples: (samples,) at the classifier's rate, floating point in [-1, 1] or int16. Default: there are no
                more, and what remains is judged.

        Returns:
            (seconds, label, probability) of each label that rises to the threshold, and when its frame ends.
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
    """An audio file's samples at a listener's rate, a part at a time."""
    part = 100 * listener.hop
    return (wav for _, wav in _windows(path, read_header(path), part, listener.rate, part / listener.rate))


def raw_samples(file, listener):
    """Yield raw PCM, 16 bits, little-endian, one channel, of a binary file as it arrives: a frame's samples at once."""
    while len(data := file.read(2 * listener.hop)) > 1:
        yield np.frombuffer(data[: len(data) // 2 * 2], "<i2")


def microphone(listener):
    """Yield what the default microphone hears, a frame's samples at a time, through the package sounddevice."""
    import sounddevice

    with sounddevice.RawInputStream(listener.rate, listener.hop, channels=1, dtype="int16") as stream:
        while True:
            yield np.frombuffer(stream.read(listener.hop)[0], np.int16)
