"""The processes of a run: one by itself, or as many as torchrun starts, on one machine or several."""

import gc
import os
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

PATIENCE = timedelta(hours=2)
"""How long processes wait for one another: a linear probe is trained by the first one alone."""


@dataclass(frozen=True)
class Processes:
    """This process among all of a run.

    Attributes:
        rank: number of this process, from 0, over all machines.
        world_size: processes of the run.
        device: where this process computes.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def first(self):
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    @property
    def joined(self):
        """Whether the processes are a group that torch.distributed knows: under torchrun, even of one."""
        return dist.is_initialized()

    def sum(self, tensor):
        """Sum over all processes, of a tensor on any device."""
        if self.joined:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag):
        """Whether the flag is set in any process."""
        return bool(self.sum(torch.tensor(float(bool(flag)))))

    def wait(self):
        """Until all processes are here."""
        if self.joined:
            dist.barrier()

    def gather(self, value):
        """The values of all processes, in the order of their ranks."""
        values = [value]
        if self.joined:
            values = [None] * self.world_size
            dist.all_gather_object(values, value)
        return values


def rank():
    """Number of this process, from 0, as torchrun says it; 0 without torchrun."""
    return int(os.environ.get("RANK", 0))


def choose_device(name=None):
    """"cpu" or "cuda": the device that is asked for, by default a GPU where there is one."""
    return name or ("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def start_processes(device=None):
    """The processes of this run, joined for as long as the context lasts; what is distributed over them has to be let
    go of inside it.

    Args:
        device: "cpu" or "cuda". Default: CUDA where there is one. Under torchrun each process takes the GPU of its
            local rank.
    """
    device = torch.device(choose_device(device))
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if world_size > 1 or dist.is_torchelastic_launched():
        # On the CPU go flags and objects, so that no GPU is waited for.
        cuda = {"backend": "cpu:gloo,cuda:nccl", "device_id": device}
        dist.init_process_group(**cuda if device.type == "cuda" else {"backend": "gloo"}, timeout=PATIENCE)
    try:
        processes = Processes(rank(), world_size, device)
        yield processes
        processes.wait()
    finally:
        if dist.is_initialized():
            # A DistributedDataParallel that outlives its process group can wait for ever in its destructor.
            gc.collect()
            dist.destroy_process_group()
