"""Linear probes of each hidden state, averaged over time; they do not need s3prl."""

from .cache import cached_time_averages
from .features import log_mel_averages, time_averages
from .geometry import linear_cka
from .linear import CrossValidation, ProbeResults, cross_validate, train_probes
from .superb_head import HeadResults, SuperbHead, read_layer_weights, train_head

__all__ = [
    "CrossValidation", "HeadResults", "ProbeResults", "SuperbHead", "cached_time_averages",
    "cross_validate", "linear_cka", "log_mel_averages", "read_layer_weights", "time_averages",
    "train_head", "train_probes",
]
