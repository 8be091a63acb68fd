"""Cosine similarity, and what a device can do."""

import contextlib
import ctypes

import torch
import torch.nn.functional as F


def pytorch_cos_sim(a, b):
    """Cosine similarity of every row of `a` with every row of `b`: (n, m) float32.

    Args:
        a, b: (n, d) and (m, d) tensors, arrays or nested lists; a single vector (d,) counts as one row.
    """
    a, b = (torch.atleast_2d(torch.as_tensor(x, dtype=torch.float32)) for x in (a, b))
    return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T


def default_device():
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_precision(precision, device):
    """What "auto" means on `device`: "bf16" where the hardware computes in it, else "fp32"; others stay as they are."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        names = ("avx512_bf16", "amx_bf16", "bf16")
        known = device.type == "cpu" and hasattr(torch.cpu, "get_capabilities")
        capabilities = torch.cpu.get_capabilities() if known else {}
        has_bf16 = any(capabilities.get(name) for name in names)
    return "bf16" if has_bf16 else "fp32"


def autocast(precision, device):
    """A context in which matrix products on `device` run in `precision`, "fp32" or "bf16"; weights stay float32.

    Copies of the weights are not kept for the next product: gradients would be summed in bf16, too, and CUDA graphs
    would be replayed with copies of old ones.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


def return_freed_memory():
    """Have glibc give freed memory back to the system; where there is no glibc, nothing.

    Its heap fragments as tensors of ever other sizes come and go: 60 steps of mini at batch 128 took it from 0.9 to
    2.3 GB.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
