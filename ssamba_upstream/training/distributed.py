"""The processes of a run: a single one, or those started by torchrun on one or several machines."""

import gc
import os
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

PATIENCE = timedelta(hours=2)
"""Time that processes wait for one another; only the first one trains linear probes."""


@dataclass(frozen=True)
class Processes:
    """This process's place among the processes of a run.

    Attributes:
        rank: rank of this process over all machines, from 0.
        world_size: number of processes.
        device: device of this process.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def first(self):
        """True if this process writes files and shows progress."""
        return self.rank == 0

    @property
    def joined(self):
        """True if there is a process group of torch.distributed; under torchrun, even with one process."""
        return dist.is_initialized()

    def sum(self, tensor):
        """Return the sum of a tensor, on any device, over all processes."""
        if self.joined:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag):
        """Return True if the flag is set in any process."""
        return bool(self.sum(torch.tensor(float(bool(flag)))))

    def wait(self):
        """Wait until all processes have called this."""
        if self.joined:
            dist.barrier()

    def gather(self, value):
        """Return the values of all processes, in order of rank."""
        values = [value]
        if self.joined:
            values = [None] * self.world_size
            dist.all_gather_object(values, value)
        return values


def rank():
    """Return this process's rank under torchrun, otherwise 0."""
    return int(os.environ.get("RANK", 0))


def choose_device(name=None):
    """Return the given device name; by default "cuda" if available, otherwise "cpu"."""
    return name or ("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def start_processes(device=None):
    """Join the processes of this run for the duration of the context. Drop distributed objects before it ends.

    Args:
        device: "cpu" or "cuda". Default: "cuda" if available. Under torchrun each process uses the GPU of its local
            rank.
    """
    device = torch.device(choose_device(device))
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if world_size > 1 or dist.is_torchelastic_launched():
        # Flags and objects are exchanged through the CPU, without synchronising with a GPU.
        cuda = {"backend": "cpu:gloo,cuda:nccl", "device_id": device}
        dist.init_process_group(**cuda if device.type == "cuda" else {"backend": "gloo"}, timeout=PATIENCE)
    try:
        processes = Processes(rank(), world_size, device)
        yield processes
        processes.wait()
    finally:
        if dist.is_initialized():
            # The destructor of a DistributedDataParallel that outlives its process group can hang.
            gc.collect()
            dist.destroy_process_group()
