"""Which patches of a clip are masked: square clusters, drawn for a whole batch at once.

A side, of 3, 4 or 5 patches by default, is drawn for each clip, and squares of that side are laid down until enough
patches are covered (SSAST, arXiv 2110.09784, section 2.3).
"""

import torch
import torch.nn.functional as F

PUBLISHED_SIDES = (3, 5)


def cluster_mask(batch, rows, columns, masked, generator=None, published=False, sides=PUBLISHED_SIDES):
    """Draw masks.

    By default squares may reach over the edges, where they are cut off, so that every patch lies in equally many of
    them, and a random part of the last square is kept. All patches are about equally likely to be masked, those at the
    edges slightly less. In 200,000 masks, corners were masked 0.778 of the time and the middle 0.783 (400 of 8 x 64
    patches), 0.580 and 0.588 (75 of 4 x 32), or 0.768 and 0.790 (100 of 8 x 16).

    ``published`` draws as the published code does: squares begin inside the grid only and run on from the end of a row
    into the next, the first patch is never masked, squares are laid down until more than ``masked`` patches are
    covered, and what is too many is dropped from the highest indices; low bands are therefore masked less often than
    high ones.

    Args:
        batch: clips.
        rows, columns: the grid of patches, frequency and time.
        masked: patches to be masked in each clip.
        generator: torch.Generator on the CPU. Default: torch's global one.
        sides: smallest and largest side of a square; (1, 1) draws patches one by one.

    Returns:
        (batch, rows * columns) of bool on the CPU, frequency-major, exactly ``masked`` true in each row.

    Raises:
        ValueError: more patches to be masked than there are, or none.
    """
    patches = rows * columns
    maskable = patches - 2 if published else patches
    if not 1 <= masked <= maskable:
        raise ValueError(f"masked patches must be from 1 to {maskable}, of {patches}; got {masked}")
    smallest, largest = sides
    drawn = torch.randint(smallest, largest + 1, (batch, 1, 1), generator=generator)
    if published:
        return _lowest(_published_cover(drawn, largest, rows, columns, generator), masked)
    cover = _cover(drawn, largest, rows, columns, generator)
    last = cover.sort(dim=1).values[:, masked - 1, None]
    # All squares before the last are masked, and as many patches of the last as are still wanted, drawn at random.
    chance = torch.rand(cover.shape, generator=generator, dtype=torch.float64)
    order = torch.where(cover == last, chance, torch.where(cover < last, -1.0, 2.0))
    return torch.zeros(batch, patches, dtype=torch.bool).scatter_(1, order.topk(masked, largest=False).indices, True)


# Squares are laid down in a random order of the places where they can begin: repeated draws of a place change nothing.
# Each place therefore gets a random time, and a patch is covered at the earliest time of the squares that contain it.


def _cover(sides, largest, rows, columns, generator):
    """(batch, patches): when each patch is covered by squares that may begin before the first row and column."""
    margin = largest - 1
    times = torch.rand(len(sides), rows + margin, columns + margin, generator=generator, dtype=torch.float64)
    times = _earliest([times[:, margin - i : margin - i + rows] for i in range(largest)], sides)
    times = _earliest([times[:, :, margin - j : margin - j + columns] for j in range(largest)], sides)
    return times.flatten(1)


def _published_cover(sides, largest, rows, columns, generator):
    """(batch, patches): when each patch is covered by squares that run on from a row's end into the next."""
    times = torch.rand(len(sides), 1, rows * columns, generator=generator, dtype=torch.float64)
    for step in (columns, 1):
        shifted = [F.pad(times, (i * step, 0), value=torch.inf)[..., : rows * columns] for i in range(largest)]
        times = _earliest(shifted, sides)
    times[..., 0] = torch.inf
    return times.squeeze(1)


def _earliest(shifted, sides):
    """The minimum over as many of the shifted times as a clip's squares have rows or columns."""
    return torch.stack([times.masked_fill(i >= sides, torch.inf) for i, times in enumerate(shifted)]).amin(0)


def _lowest(cover, masked):
    """The lowest patches of those covered by the time that more than ``masked`` are."""
    last = cover.sort(dim=1).values[:, masked, None]
    covered = cover <= last
    return covered & (covered.cumsum(dim=1) <= masked)
