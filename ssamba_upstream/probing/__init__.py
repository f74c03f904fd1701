"""How much of a label can be read linearly from each hidden state, averaged over time; without s3prl."""

from .features import log_mel_averages, time_averages
from .labelled import LabelledSet, LabelledSetError, read_labelled
from .probes import CrossValidation, ProbeResults, cross_validate, train_probes

__all__ = [
    "CrossValidation", "LabelledSet", "LabelledSetError", "ProbeResults", "cross_validate",
    "log_mel_averages", "read_labelled", "time_averages", "train_probes",
]
