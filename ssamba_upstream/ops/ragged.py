"""Ragged batches: sequences of any lengths, concatenated in a single batch entry.

``offsets``, (sequences + 1,), marks their boundaries: sequence i occupies the steps offsets[i] ... offsets[i + 1] - 1.
"""

import torch


def check_offsets(x, offsets):
    """Raise a ValueError if offsets have the wrong shape, dtype or device for x, (1, ...)."""
    if x.shape[0] != 1:
        raise ValueError(f"offsets divide a batch of one entry into sequences; got a batch of {x.shape[0]}")
    if offsets.dim() != 1 or not len(offsets) or offsets.dtype != torch.int64 or offsets.device != x.device:
        raise ValueError(
            f"offsets must be int64, (sequences + 1,), on the inputs' device, {x.device}; got {offsets.dtype}, "
            f"{tuple(offsets.shape)}, on {offsets.device}"
        )


def boundaries(length, offsets):
    """Return the offsets as a list of int. Raises a ValueError unless they ascend from 0 to the length."""
    found = offsets.tolist()
    if found[0] != 0 or found[-1] != length or found != sorted(found):
        raise ValueError(f"offsets must ascend from 0 to the length, {length}; got {found}")
    return found


def join_inputs(before, x, reverse, offsets):
    """Join each sequence's initial inputs, (sequences, channels, inputs), with its steps. Return the joined input, its
    offsets or None, the places of x's steps in it, and the initial inputs for the next steps."""
    context, length = before.shape[-1], x.shape[-1]
    before, x = before.to(x.dtype).transpose(1, 2), x.transpose(1, 2)  # keeps channels contiguous in memory
    if offsets is None:
        joined = torch.cat([x, before] if reverse else [before, x], dim=1)
        last, places = (0, slice(length)) if reverse else (length, slice(context, None))
        return joined.transpose(1, 2), None, places, joined[:, last : last + context].transpose(1, 2).clone()
    check_offsets(x, offsets)
    joined_offsets = offsets + context * torch.arange(len(offsets), device=x.device)
    within = torch.arange(context, device=x.device)
    firsts, lasts = joined_offsets[:-1, None] + within, joined_offsets[1:, None] - context + within
    steps = torch.arange(length, device=x.device)
    places = steps + context * (torch.bucketize(steps, offsets[1:-1], right=True) + (not reverse))
    joined = x.new_empty(1, length + context * len(before), x.shape[2]).index_copy(1, places, x)
    joined = joined.index_copy(1, (lasts if reverse else firsts).flatten(), before.flatten(0, 1)[None])
    last = joined[0][firsts if reverse else lasts].transpose(1, 2)
    return joined.transpose(1, 2), joined_offsets, places, last
