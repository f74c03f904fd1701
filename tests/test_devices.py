"""From the CPU to a GPU: through pinned memory, but for torch.compile."""

from unittest import mock

import pytest
import torch

from ssamba_upstream.devices import send


@pytest.mark.parametrize("compiling, device, pinned", [(False, "cuda", 1), (True, "cuda", 0), (False, "cpu", 0)])
def test_what_goes_to_a_gpu_is_pinned_but_while_it_is_traced(monkeypatch, compiling, device, pinned):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    tensor = mock.Mock(device=torch.device("cpu"))
    tensor.pin_memory.return_value = tensor
    send(tensor, torch.device(device))
    assert tensor.pin_memory.call_count == pinned
    tensor.to.assert_called_once_with(torch.device(device), non_blocking=True)


@pytest.mark.gpu
def test_torch_compile_can_send():
    found = torch.compile(lambda x: 2 * send(x, torch.device("cuda")), backend="eager", fullgraph=True)(torch.ones(3))
    assert found.is_cuda and found.tolist() == [2, 2, 2]
