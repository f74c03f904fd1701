"""How much of a label can be read linearly from each hidden state, averaged over time; without s3prl."""

from .cache import cached_time_averages
from .features import Excerpt, log_mel_averages, time_averages
from .geometry import linear_cka
from .linear import CrossValidation, ProbeResults, cross_validate, train_probes
from .superb_head import HeadResults, SuperbHead, read_layer_weights, train_head
from ..corpora.superb_sets import read_superb

__all__ = [
    "CrossValidation", "Excerpt", "HeadResults", "ProbeResults", "SuperbHead", "cached_time_averages",
    "cross_validate", "linear_cka", "log_mel_averages", "read_layer_weights", "read_superb", "time_averages",
    "train_head", "train_probes",
]
