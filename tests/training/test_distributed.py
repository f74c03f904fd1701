"""Connecting the processes of a run on GPUs."""

from datetime import timedelta
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from ssamba_upstream.training.distributed import start_processes


@pytest.mark.parametrize("launched, world_size", [(False, 1), (True, 1), (True, 4)])
def test_nccl_is_joined_under_torchrun_and_waits_for_hours(monkeypatch, launched, world_size):
    """This includes a single process, so that it can be tested on one GPU. Only the first process runs probes."""
    for name, value in {"WORLD_SIZE": world_size, "RANK": world_size - 1, "LOCAL_RANK": world_size - 1}.items():
        monkeypatch.setenv(name, str(value))
    join = mock.Mock()
    monkeypatch.setattr(dist, "init_process_group", join)
    monkeypatch.setattr(dist, "is_torchelastic_launched", lambda: launched)
    monkeypatch.setattr(torch.cuda, "set_device", mock.Mock())
    with start_processes("cuda") as processes:
        assert processes.device == torch.device("cuda", world_size - 1)
    assert join.called == launched
    if launched:
        assert join.call_args.kwargs["backend"] == "cpu:gloo,cuda:nccl"
        assert join.call_args.kwargs["device_id"] == processes.device
        assert join.call_args.kwargs["timeout"] >= timedelta(hours=1)
