"""Learned positions on other grids, against explicit definitions."""

import pytest
import torch

from ssamba_upstream import SsambaConfig
from ssamba_upstream.network.positions import position_embedding


def places(config):
    """Positions that encode their own place: (mel band, frame) of each pretraining patch's corner."""
    rows, columns = config.position_grid
    corner = torch.stack(torch.meshgrid(
        torch.arange(rows) * config.patch_size[0], torch.arange(columns) * config.patch_size[1], indexing="ij"
    ), dim=-1).float()
    return torch.cat([torch.full((1, 1, 2), -1.0), corner.view(1, -1, 2)], dim=1)


def test_pretraining_grid_is_taken_as_it_is():
    config = SsambaConfig()
    embedding = places(config)
    assert torch.equal(position_embedding(embedding, config, 8, 64), embedding)


@pytest.mark.parametrize("frequency_stride, time_stride, rows, columns", [(10, 10, 12, 100), (16, 10, 8, 7),
                                                                        (10, 2, 12, 100), (16, 16, 8, 30)])
def test_physical_positions_are_the_places_themselves(frequency_stride, time_stride, rows, columns):
    config = SsambaConfig(frequency_stride=frequency_stride, time_stride=time_stride)
    found = position_embedding(places(config), config, rows, columns)
    assert (found[0, 0] == -1).all()
    grid = found[0, 1:].view(rows, columns, 2)
    expected_bands = (torch.arange(rows) * frequency_stride).clamp(max=112).float()
    torch.testing.assert_close(grid[..., 0], expected_bands[:, None].expand(rows, columns))
    expected_frames = (torch.arange(columns) * time_stride).clamp(max=1008).float()
    torch.testing.assert_close(grid[..., 1], expected_frames.expand(rows, columns))


def test_physical_positions_end_with_the_pretraining_clips():
    config = SsambaConfig(time_stride=10)
    position_embedding(places(config), config, 8, 103)
    with pytest.raises(ValueError, match='104 columns is longer than the 1024 frames.*positions="published"'):
        position_embedding(places(config), config, 8, 104)


def test_physical_positions_end_with_the_last_whole_patch():
    config = SsambaConfig(patch_size=[32, 8], pretraining_frames=103)
    assert position_embedding(places(config), config, 4, 12).shape == (1, 1 + 4 * 12, 2)
    with pytest.raises(ValueError, match="13 columns is longer than the 96 frames"):
        position_embedding(places(config), config, 4, 13)


def test_published_positions_cut_the_middle_when_shorter():
    config = SsambaConfig(time_stride=10, positions="published")
    grid = position_embedding(places(config), config, 8, 9)[0, 1:].view(8, 9, 2)
    torch.testing.assert_close(grid[0, :, 1], torch.arange(28, 37).float() * 16)


def test_published_positions_stretch_when_longer():
    config = SsambaConfig(frequency_stride=10, time_stride=10, positions="published")
    embedding = torch.randn(1, 513, 3)
    found = position_embedding(embedding, config, 12, 99)
    image = embedding[:, 1:].view(1, 8, 64, 3).permute(0, 3, 1, 2)
    wide = torch.nn.functional.interpolate(image, size=(8, 99), mode="bilinear")
    expected = torch.nn.functional.interpolate(wide, size=(12, 99), mode="bilinear").permute(0, 2, 3, 1)
    torch.testing.assert_close(found[:, 1:], expected.reshape(1, -1, 3))
    assert torch.equal(found[:, :1], embedding[:, :1])


@pytest.mark.parametrize("rule", ["physical", "published"])
def test_gradients_reach_the_learned_positions(rule):
    config = SsambaConfig(frequency_stride=10, time_stride=10, positions=rule)
    embedding = torch.randn(1, 513, 4, dtype=torch.float64, requires_grad=True)
    position_embedding(embedding, config, 12, 102).square().sum().backward()
    assert embedding.grad.any(dim=-1).all()
