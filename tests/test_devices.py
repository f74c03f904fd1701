"""Copies to a GPU through pinned memory, except under torch.compile, and back without waiting."""

import functools
from unittest import mock

import pytest
import torch

from ssamba_upstream import devices
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


def test_a_number_of_a_gpu_is_read_when_it_is_known(monkeypatch):
    """The numbers are reported in their order, each once, and only if they are not finite."""
    events, called = [mock.Mock() for _ in range(4)], []
    known = (0, torch.nan), (1, 1.0), (2, torch.inf), (3, -torch.inf)
    monkeypatch.setattr(devices, "_unread", devices.collections.deque(
        (torch.tensor(number), events[i], lambda i=i: called.append(i)) for i, number in known
    ))
    for event, is_known in zip(events, (True, True, True, False)):
        event.query.return_value = is_known
    devices.read_numbers()
    assert called == [0, 2]
    devices.read_numbers()
    events[3].query.return_value = True
    devices.read_numbers()
    assert called == [0, 2, 3]


def test_a_number_of_the_cpu_is_read_at_once():
    called = []
    for number in (torch.inf, 0.0, -torch.inf):
        devices.call_unless_finite(torch.tensor(number), functools.partial(called.append, number))
    assert called == [torch.inf, -torch.inf] and not devices._unread


@pytest.mark.gpu
def test_a_gpu_is_not_waited_for():
    called = []
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        devices.call_unless_finite(torch.full((), torch.nan, device="cuda"), lambda: called.append(1))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    devices.read_numbers()
    assert called == [1]
