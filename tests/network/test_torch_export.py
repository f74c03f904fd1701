"""torch.export with dynamic batch size and length."""

import pytest
import torch
from torch.export import Dim, export, load, save

from ssamba_upstream import SsambaConfig, SsambaForAudioClassification, SsambaModel

pytestmark = pytest.mark.slow

SMALL = {"hidden_size": 32, "num_hidden_layers": 2}
SIZES = [(1, 32), (3, 1024), (1, 700), (5, 99)]


def exported(model):
    """Export for clips from two columns of patches to the longest; torch.export needs these bounds."""
    shapes = {0: Dim("batch", min=1, max=64), 1: Dim("time", min=32, max=1024)}
    with torch.no_grad():
        return export(model, (torch.randn(2, 400, 128),), dynamic_shapes={"input_values": shapes})


def assert_equal(found, model):
    for batch, frames in SIZES:
        log_mel = torch.randn(batch, frames, 128)
        with torch.no_grad():
            for left, right in zip(found(log_mel).values(), model(log_mel).values()):
                torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fields", [
    {}, {"time_stride": 10, "frequency_stride": 10}, {"block_order": "paired", "norm": "rms_norm"},
    {"token_order": "time_major", "directions": "forward"},
], ids=["default", "overlapping patches", "paired, RMS norm", "causal"])
def test_encoder_of_any_batch_and_time(tmp_path, fields):
    model = SsambaModel(SsambaConfig(**SMALL, **fields)).eval()
    save(exported(model), tmp_path / "model.pt2")
    assert_equal(load(tmp_path / "model.pt2").module(), model)


def test_classifier_of_any_batch_and_time():
    model = SsambaForAudioClassification(SsambaConfig(**SMALL, num_labels=3)).eval()
    assert_equal(exported(model).module(), model)
