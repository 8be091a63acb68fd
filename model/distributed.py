"""All that knows of several processes (torchrun). One process alone is the ordinary case, and costs nothing.

Every process holds the whole model and computes the same loss of the whole batch: `share` tells which sentences it
encodes, `gather` brings all embeddings together, `average_gradients` makes the gradients those of one process.
"""

import contextlib
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F

from data.errors import RunError, UserError, first_line

TORCHRUN = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}  # what it sets; others set some of it


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    return dist.get_world_size() if dist.is_initialized() else 1


@contextlib.contextmanager
def processes(device):
    """Inside, the processes that torchrun started are a group: NCCL between GPUs, gloo between CPUs.

    Yields:
        The device of this process: under torchrun, `cuda` is the GPU of its local rank.
    """
    alone = not TORCHRUN <= os.environ.keys() or dist.is_initialized()
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0 if alone else int(os.environ["LOCAL_RANK"]))
        found = torch.cuda.device_count()
        if device.index >= found:
            raise UserError(f"no GPU for process {device.index}: --nproc_per_node is at most {found} here")
        torch.cuda.set_device(device)
    if alone:
        yield device
        return
    with _lost_peers_named():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    yield device
    dist.destroy_process_group()  # not after an error: the others may be waiting elsewhere


def share(items):
    """This process's part of an array that is the same everywhere: every world_size-th item."""
    return items[rank() :: world_size()]


def gather(embeddings, n):
    """This process's share (k, d) of n embeddings into everybody's (n, d), on every process: `share` undone.

    The gradient flows to this process's own part; since every process computes the loss of all n, none is sent.
    """
    if world_size() == 1:
        return embeddings
    if embeddings.requires_grad:
        # times the world's size, because average_gradients divides by it; what every process computes alike, such as
        # an objective's own layers, it then leaves as it is
        embeddings.register_hook(lambda gradient: gradient * world_size())
    padded = F.pad(embeddings, (0, 0, 0, -(-n // world_size()) - len(embeddings)))  # gloo wants equal sizes
    everyones = [torch.empty_like(padded) for _ in range(world_size())]
    with _lost_peers_named():
        dist.all_gather(everyones, padded.detach())
    everyones[rank()] = padded
    return torch.stack(everyones, dim=1).flatten(0, 1)[:n]  # item i is process i % world's


def average_gradients(parameters):
    """Replace every gradient by its mean over the processes; once a step, after backward."""
    if world_size() == 1:
        return
    parameters = [p for p in parameters if p.grad is not None]  # the same ones everywhere
    flat = torch.cat([p.grad.flatten() for p in parameters])
    with _lost_peers_named():
        dist.all_reduce(flat)
    flat /= world_size()
    for p, mean in zip(parameters, flat.split([p.numel() for p in parameters])):
        p.grad = mean.view_as(p)


def same_everywhere(value):
    """Raise RunError unless all processes give the same string."""
    values = everyones(value)
    different = [i for i, other in enumerate(values) if other != values[0]]
    if different:
        raise RunError(f"process {different[0]} has other flags or data than process 0; all must see the same files")


def everyones(value):
    """[process 0's, process 1's, ...] values, small Python objects, on every process."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    with _lost_peers_named():
        dist.all_gather_object(values, value)
    return values


def largest(number):
    """The largest of the processes' whole numbers, on every process; waits for no GPU."""
    if world_size() == 1:
        return number
    tensor = torch.tensor(number)
    with _lost_peers_named():
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.item()


@torch.no_grad()
def broadcast(tensors):
    """Overwrite these tensors with process 0's."""
    if world_size() > 1:
        with _lost_peers_named():
            for tensor in tensors:
                dist.broadcast(tensor, 0)


@contextlib.contextmanager
def _lost_peers_named():
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # also what the backends raise for a process that is gone
        message = f"process {rank()} cannot reach the others; has one stopped with an error? ({first_line(error)})"
        raise RunError(message) from None
