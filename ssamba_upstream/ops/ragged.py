"""Ragged batches: sequences of any lengths, one after the other in a single batch entry.

``offsets``, (sequences + 1,), says where: sequence i occupies the steps offsets[i] ... offsets[i + 1] - 1.
"""

import torch


def check_offsets(x, offsets):
    """Raises ValueError where offsets do not belong beside x, (1, ...), whatever their values are."""
    if x.shape[0] != 1:
        raise ValueError(f"offsets divide a batch of one entry into sequences; got a batch of {x.shape[0]}")
    if offsets.dim() != 1 or not len(offsets) or offsets.dtype != torch.int64 or offsets.device != x.device:
        raise ValueError(
            f"offsets must be int64, (sequences + 1,), on {x.device} like what they divide; got {offsets.dtype}, "
            f"{tuple(offsets.shape)}, on {offsets.device}"
        )


def boundaries(length, offsets):
    """The offsets as a list of int. Raises ValueError where they do not divide so many steps."""
    found = offsets.tolist()
    if found[0] != 0 or found[-1] != length or found != sorted(found):
        raise ValueError(f"offsets must ascend from 0 to the length, {length}; got {found}")
    return found
