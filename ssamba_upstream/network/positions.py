"""Learned positions, adapted to grids of patches other than pretraining's."""

import torch
import torch.nn.functional as F

from ..devices import send


def position_embedding(embedding, config, rows, columns):
    """Return the positions for a grid of patches.

    Args:
        embedding: (1, 1 + rows * columns, E) for the network's ``learned_grid``, the class token's position first.
        config: the network's SsambaConfig; ``positions`` selects the rule.
        rows, columns: size of the new grid.

    Returns:
        (1, 1 + rows * columns, E), the class token's position first, then frequency-major.

    Raises:
        ValueError: If "physical" positions would exceed the length of the pretraining clips.
    """
    grid = embedding[:, 1:].unflatten(1, config.learned_grid)
    rules = {"physical": _physical, "published": _published}
    rule = _of_rows if config.causal else rules[config.positions]
    return torch.cat([embedding[:, :1], *rule(grid, config, rows, columns).unbind(1)], dim=1)


def packed_positions(embedding, config, rows, columns):
    """Return the concatenated positions of windows of different lengths.

    Args:
        embedding, config, rows: see :func:`position_embedding`, also for errors.
        columns: list of each window's number of columns.

    Returns:
        (total tokens, E), the class token's position first in each window.
    """
    # A physical position depends only on its own place, so the largest grid contains the positions of all others.
    grids = {count: max(columns) if config.positions == "physical" else count for count in columns}
    tables, firsts, total = [], {}, 0
    for count in sorted(set(grids.values())):
        tables.append(position_embedding(embedding, config, rows, count)[0])
        firsts[count], total = total, total + len(tables[-1])
    places = {
        count: torch.cat([
            torch.tensor([firsts[grid]]),
            (firsts[grid] + 1 + grid * torch.arange(rows)[:, None] + torch.arange(count)).flatten(),
        ])
        for count, grid in grids.items()
    }
    return torch.cat(tables)[send(torch.cat([places[count] for count in columns]), embedding.device)]


def stretch_positions(embedding, config, columns):
    """Stretch the learned positions along time by bilinear interpolation, for longer clips.

    Args:
        embedding: (1, 1 + rows * pretraining columns, E), the class token's position first.
        config: the network's SsambaConfig.
        columns: number of columns in the new grid.

    Returns:
        (1, 1 + rows * columns, E), the class token's position unchanged.
    """
    grid = embedding[:, 1:].unflatten(1, config.position_grid).permute(0, 3, 1, 2)
    stretched = _stretched(grid, grid.shape[2], columns)
    return torch.cat([embedding[:, :1], stretched.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _of_rows(grid, config, rows, columns):
    """Return the positions for a causal network, the same in all columns: a recurrence needs no positions in time,
    and learned ones would end at the length of the pretraining clips."""
    weights = _interpolation(rows, config.frequency_stride / config.patch_size[0], grid.shape[1], grid)
    return (weights @ grid.flatten(2)).unflatten(2, grid.shape[2:]).expand(-1, -1, columns, -1)


def _physical(grid, config, rows, columns):
    """Interpolate the learned positions linearly at each patch's own place in frequency and time.

    Pretraining patches are one patch size apart; places past the last one take its position.
    """
    if columns > config.most_columns:
        raise ValueError(
            f"a window of {columns} columns is longer than the {config.learned_frames} frames with learned positions. "
            'Use shorter windows, or positions="published", which stretches them'
        )
    if (config.frequency_stride, config.time_stride) == tuple(config.patch_size):
        return grid[:, :, torch.arange(columns, device=grid.device)]  # a slice would bound torch.export's shapes
    row_weights = _interpolation(rows, config.frequency_stride / config.patch_size[0], grid.shape[1], grid)
    column_weights = _interpolation(columns, config.time_stride / config.patch_size[1], grid.shape[2], grid)
    in_rows = (row_weights @ grid.flatten(2)).unflatten(2, grid.shape[2:])
    return column_weights @ in_rows


def _interpolation(count, spacing, learned, like):
    """Return (count, learned): interpolation weights of the learned places for places 0, spacing, 2 spacing, ..."""
    places = (torch.arange(count, device=like.device, dtype=torch.float32) * spacing).clamp(max=learned - 1)
    distance = (places[:, None] - torch.arange(learned, device=like.device)).abs()
    return (1 - distance).clamp(min=0).to(like.dtype)


def _published(grid, config, rows, columns):
    """Apply the published code's rule: crop the middle of the learned grid for smaller grids, stretch for larger."""
    grid = grid.permute(0, 3, 1, 2)
    if columns < grid.shape[3]:
        start = grid.shape[3] // 2 - columns // 2
        grid = grid[..., start : start + columns]
    else:
        grid = _stretched(grid, grid.shape[2], columns)
    if rows < grid.shape[2]:
        start = grid.shape[2] // 2 - rows // 2
        grid = grid[:, :, start : start + rows]
    else:
        grid = _stretched(grid, rows, columns)
    return grid.permute(0, 2, 3, 1)


def _stretched(grid, rows, columns):
    """Interpolate (1, E, any rows, any columns) to (1, E, rows, columns)."""
    return F.interpolate(grid, size=(rows, columns), mode="bilinear")
