"""Learned positions on another grid of patches than pretraining's."""

import torch
import torch.nn.functional as F

from ..devices import send


def position_embedding(embedding, config, rows, columns):
    """Positions of a grid of patches.

    Args:
        embedding: (1, 1 + rows * columns, E) of the network's ``learned_grid``, the class token's position first.
        config: the network's SsambaConfig; ``positions`` selects the rule.
        rows, columns: the grid wanted.

    Returns:
        (1, 1 + rows * columns, E), the class token's position first, then frequency-major.

    Raises:
        ValueError: "physical" positions beyond the length of the pretraining clips.
    """
    grid = embedding[:, 1:].unflatten(1, config.learned_grid)
    rules = {"physical": _physical, "published": _published}
    rule = _of_rows if config.causal else rules[config.positions]
    return torch.cat([embedding[:, :1], *rule(grid, config, rows, columns).unbind(1)], dim=1)


def packed_positions(embedding, config, rows, columns):
    """Positions of windows of different lengths, one after the other.

    Args:
        embedding, config, rows: as of :func:`position_embedding`.
        columns: those of each window, a list.

    Returns:
        (total tokens, E), for each window its class token's first.

    Raises:
        ValueError: see :func:`position_embedding`.
    """
    # A physical position depends on nothing but its own place, so that the largest grid has those of all others.
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
    """Learned positions of a longer clip: the learned grid, stretched along time by bilinear interpolation.

    Args:
        embedding: (1, 1 + rows * pretraining columns, E), the class token's position first.
        config: the network's SsambaConfig.
        columns: those of the new grid.

    Returns:
        (1, 1 + rows * columns, E), the class token's position as it was.
    """
    grid = embedding[:, 1:].unflatten(1, config.position_grid).permute(0, 3, 1, 2)
    stretched = _stretched(grid, grid.shape[2], columns)
    return torch.cat([embedding[:, :1], stretched.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _of_rows(grid, config, rows, columns):
    """The positions of a causal network, which are the same in all columns: a recurrence knows what came before, and
    positions in time would end with the clips that they were learned from."""
    weights = _interpolation(rows, config.frequency_stride / config.patch_size[0], grid.shape[1], grid)
    return (weights @ grid.flatten(2)).unflatten(2, grid.shape[2:]).expand(-1, -1, columns, -1)


def _physical(grid, config, rows, columns):
    """A patch takes the position learned at its own place in frequency and time, linearly interpolated.

    Pretraining patches stand a patch size apart; places past the last of them take its position.
    """
    if columns > config.most_columns:
        raise ValueError(
            f"a window of {columns} columns reaches beyond the {config.learned_frames} frames whose positions "
            'were learned; use shorter windows, or positions="published", which stretches them'
        )
    if (config.frequency_stride, config.time_stride) == tuple(config.patch_size):
        return grid[:, :, torch.arange(columns, device=grid.device)]  # a slice would bound torch.export's shapes
    row_weights = _interpolation(rows, config.frequency_stride / config.patch_size[0], grid.shape[1], grid)
    column_weights = _interpolation(columns, config.time_stride / config.patch_size[1], grid.shape[2], grid)
    in_rows = (row_weights @ grid.flatten(2)).unflatten(2, grid.shape[2:])
    return column_weights @ in_rows


def _interpolation(count, spacing, learned, like):
    """(count, learned): weights of the learned places for places 0, spacing, 2 spacing, ... between them."""
    places = (torch.arange(count, device=like.device, dtype=torch.float32) * spacing).clamp(max=learned - 1)
    distance = (places[:, None] - torch.arange(learned, device=like.device)).abs()
    return (1 - distance).clamp(min=0).to(like.dtype)


def _published(grid, config, rows, columns):
    """The rule of the published code: the middle of the learned grid when fewer are wanted, stretched when more."""
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
    """(1, E, any rows, any columns) -> (1, E, rows, columns)"""
    return F.interpolate(grid, size=(rows, columns), mode="bilinear")
