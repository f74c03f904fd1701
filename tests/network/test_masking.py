"""Masks against the statistics of the published generator, and properties of the corrected one."""

import json

import pytest
import torch
import torch.nn.functional as F

from helpers.paths import DATA
from ssamba_upstream.network import masking
from ssamba_upstream.network.masking import cluster_mask

ROWS, COLUMNS = 8, 64


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("rows, columns, masked", [(8, 64, 250), (8, 64, 400), (8, 16, 1), (8, 8, 62), (2, 3, 4)])
def test_exactly_as_many_as_asked_for(published, rows, columns, masked):
    mask = cluster_mask(16, rows, columns, masked, published=published)
    assert mask.shape == (16, rows * columns) and mask.dtype == torch.bool
    assert (mask.sum(1) == masked).all()


@pytest.mark.parametrize("published", [False, True])
def test_the_generator_alone_decides(published):
    def draw(seed):
        return cluster_mask(4, ROWS, COLUMNS, 300, torch.Generator().manual_seed(seed), published)

    first = draw(1)
    torch.manual_seed(5)
    assert torch.equal(draw(1), first)
    assert not torch.equal(draw(2), first)
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("masked", [0, 513, -1])
def test_impossible_numbers(masked):
    with pytest.raises(ValueError, match="must be from 1 to 512"):
        cluster_mask(1, ROWS, COLUMNS, masked)
    with pytest.raises(ValueError, match="must be from 1 to 510, of 512; got 511"):
        cluster_mask(1, ROWS, COLUMNS, 511, published=True)


@pytest.mark.parametrize("masked", [250, 300, 400])
def test_published_statistics(masked):
    """Compares 20,000 draws of the published generator with 4,000 of ours, within five standard errors."""
    expected = json.loads((DATA / "mask_stats.json").read_text())[str(masked)]
    generator = torch.Generator().manual_seed(masked)
    drawn = torch.cat([cluster_mask(500, ROWS, COLUMNS, masked, generator, published=True) for _ in range(8)]).float()
    share = drawn.mean(0)
    close = {"rtol": 0, "atol": 5 * (0.25 / 4000 + 0.25 / 20000) ** 0.5}
    assert share[0] == expected["p_index0"] == 0 and share[511] == expected["p_index511"] == 0
    torch.testing.assert_close(share[1].item(), expected["p_index1"], **close)
    torch.testing.assert_close(share.max().item(), expected["max"], **close)
    grid = share.view(ROWS, COLUMNS)
    torch.testing.assert_close(grid.mean(1), torch.tensor(expected["row_freq_lowfreq_to_high"]), rtol=0, atol=0.01)
    torch.testing.assert_close(grid.mean(0)[:6], torch.tensor(expected["col_freq_first6"]), rtol=0, atol=0.015)
    torch.testing.assert_close(grid.mean(0)[-6:], torch.tensor(expected["col_freq_last6"]), rtol=0, atol=0.015)
    highest = (drawn * torch.arange(512)).amax(1).mean().item()
    assert abs(highest - expected["mean_max_index"]) < 1


def test_of_the_last_square_a_random_part_is_kept(monkeypatch):
    """Earlier squares are masked completely, later ones not at all."""
    times = torch.tensor([0.9, 0.2, 0.2, 0.90001, 0.1, 0.1, 0.2, 0.20001, 0.1, 0.2], dtype=torch.float64)
    monkeypatch.setattr(masking, "_cover", lambda sides, *others: times.expand(len(sides), -1))
    mask = cluster_mask(4000, 2, 5, 5)
    before, last = times < 0.2, times == 0.2
    assert mask[:, before].all() and not mask[:, ~(before | last)].any()
    kept = mask[:, last].float().mean(0)
    torch.testing.assert_close(kept, torch.full((4,), 0.5), rtol=0, atol=5 * (0.25 / 4000) ** 0.5)
    together = (mask[:, last].float().T @ mask[:, last].float()) / 4000
    torch.testing.assert_close(together[~torch.eye(4, dtype=torch.bool)], torch.full((12,), 1 / 6), rtol=0, atol=0.03)


def test_edges_are_masked_about_as_often_as_the_inside():
    """On the grid of one_hour, edges used to be masked 0.60 of the time and the inside 0.58."""
    generator = torch.Generator().manual_seed(0)
    grid = torch.cat([cluster_mask(2000, 4, 32, 75, generator) for _ in range(6)]).float().mean(0).view(4, 32)
    corners = grid[[0, 0, -1, -1], [0, -1, 0, -1]]
    for part in (corners, grid[:, [0, -1]], grid[[0, -1]], grid[1:-1, 5:-5]):
        assert abs(part.mean() - 75 / 128) < 0.01


@pytest.mark.parametrize("masked", [250, 400])
def test_corrected_masks_prefer_no_patch(masked):
    """Every patch's share is within the error of 4,000 masks."""
    share = torch.cat([cluster_mask(500, ROWS, COLUMNS, masked) for _ in range(8)]).float().mean(0)
    expected = masked / 512
    error = (expected * (1 - expected) / 4000) ** 0.5
    assert (share - expected).abs().max() < 5 * error


def test_only_published_squares_wrap_round_the_rows():
    """In corrected masks, a row's last patch and the next row's first are masked together only by chance."""
    together = {}
    for published in (False, True):
        drawn = torch.cat([cluster_mask(500, ROWS, COLUMNS, 40, published=published) for _ in range(8)])
        grid = drawn.view(-1, ROWS, COLUMNS)
        pairs = (grid[:, 3:6, -1] & grid[:, 4:7, 0]).float().mean()
        together[published] = (pairs / (grid[:, 3:6, -1].float().mean() * grid[:, 4:7, 0].float().mean())).item()
    assert together[False] < 2
    assert together[True] > 4


def test_masks_are_clusters():
    grid = cluster_mask(500, ROWS, COLUMNS, 60).view(-1, ROWS, COLUMNS).float()
    share = grid.mean()
    assert (grid[:, :, 1:] * grid[:, :, :-1]).mean() > 3 * share**2
    assert (grid[:, 1:] * grid[:, :-1]).mean() > 3 * share**2


@pytest.mark.parametrize("published", [False, True])
def test_sides_of_the_squares(published):
    """With single patches, neighbours are masked together by chance; with 2 x 2, an inner patch is never alone."""
    generator = torch.Generator().manual_seed(0)
    single = cluster_mask(500, ROWS, COLUMNS, 64, generator, published, sides=(1, 1)).view(-1, ROWS, COLUMNS).float()
    assert (single[:, :, 1:] * single[:, :, :-1]).mean().item() == pytest.approx(64 / 512 * 63 / 511, rel=0.1)
    square = cluster_mask(500, ROWS, COLUMNS, 64, generator, published, sides=(2, 2)).view(-1, ROWS, COLUMNS).float()
    neighbours = F.conv2d(square.unsqueeze(1), torch.tensor([[[[0.0, 1, 0], [1, 0, 1], [0, 1, 0]]]]))[:, 0]
    alone = square[:, 1:-1, 1:-1].bool() & (neighbours < 2)
    assert alone.flatten(1).sum(1).max() <= 4  # only part of the last square is kept
