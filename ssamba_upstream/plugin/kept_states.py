"""A frozen upstream whose hidden states are computed once and kept, with s3prl's unmodified runner."""

import importlib.metadata
import time

import torch
from torch import nn

from ..devices import send
from ..frames import FrameEncoder
from ..store import state_hash
from .repairs.frames import RunError, StackedLayers


class KeptUpstream(nn.Module):
    """A frozen upstream that reads hidden states from a store, and computes and keeps missing ones.

    Its output is rounded to the store's dtype whether it was read or computed, so a second run repeats the first.
    This package's upstreams compute a whole batch at once, because their frames do not depend on other utterances.
    Other upstreams get one utterance at a time.

    Args:
        upstream: an s3prl upstream.
        store: a HiddenStateStore for this upstream and feature.
        selection: the feature to keep, s3prl's ``-s``, such as "hidden_states". If the upstream has no such feature,
            its own output is returned.
        layer: the only layer to read, s3prl's ``-l``. Default: all layers.

    Attributes:
        seconds_computing: seconds spent computing hidden states that were not in the store.
    """

    def __init__(self, upstream, store, selection="hidden_states", layer=None):
        super().__init__()
        self.module = upstream
        self.store, self.selection, self.layer = store, selection, layer
        self.seconds_computing = 0.0

    def get_downsample_rates(self, key):
        """Return the samples per frame at 16 kHz."""
        return self.module.get_downsample_rates(key)

    @torch.no_grad()
    def forward(self, wavs):
        """Map a list of (samples,) at 16 kHz to a dict from the feature's name to :class:`StackedLayers`, in the
        store's dtype.

        Raises:
            RunError: If the upstream has no such layer.
            StoreError: If hidden states are not finite or too large for the store's dtype.
        """
        try:
            return self.features(*self.store.read_or_compute(wavs, self.compute, self.layer), wavs[0].device)
        except NoSuchFeature:
            return self.module(wavs)
        except IndexError:
            raise RunError(f"-l {self.layer}: the upstream has no such layer.") from None

    def features(self, stacked, frames, device):
        """Return the Featurizer's input for hidden states in the store's dtype, see :meth:`HiddenStateStore.read`."""
        return {self.selection: StackedLayers(send(stacked, device), frames)}

    def compute(self, wavs):
        """Return the states to keep, a list of (layers, frames, width), for a list of (samples,)."""
        began = time.perf_counter()
        if isinstance(self.module, FrameEncoder):
            states = self.module.split(self._layers(wavs), wavs)
        else:
            states = [torch.cat(self._layers([wav])) for wav in wavs]
        states = [self.summarise(of_wav, len(wav)) for of_wav, wav in zip(states, wavs)]
        self.seconds_computing += time.perf_counter() - began
        return states

    def summarise(self, states, samples):
        """Return the states to keep of an utterance's hidden states, (layers, frames, width)."""
        return states

    def _layers(self, wavs):
        """Return the upstream's feature (a tensor, list or dict) as a list of (utterances, frames, width)."""
        feature = self.module(wavs).get(self.selection)
        if feature is None:
            raise NoSuchFeature
        if isinstance(feature, dict):
            return [*feature.values()]
        return [*feature] if isinstance(feature, (list, tuple)) else [feature]


class NoSuchFeature(Exception):
    """Raised if the upstream has no feature of the requested name."""


def describe(upstream, name):
    """Return what determines the hidden states of an s3prl upstream, given its name in s3prl's hub."""
    return {"upstream": name, "weights": state_hash(upstream), "s3prl": importlib.metadata.version("s3prl")}
