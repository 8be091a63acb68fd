"""Dropout whose masks are drawn fast on a CPU, and LayerNorm whose result is as narrow as the products it feeds."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Dropout(nn.Dropout):
    """As nn.Dropout, but with masks of `draw_kept` on a CPU."""

    def forward(self, x):
        if not self.training or not 0 < self.p < 1 or x.device.type != "cpu" or torch.compiler.is_compiling():
            return F.dropout(x, self.p, self.training)
        return x * draw_kept(x.shape, self.p, x.dtype)


def draw_kept(shape, p, dtype):
    """What dropout multiplies with, on the CPU: 0 with probability p < 1, else 1 / (1 - p).

    An element's fate is 15 bits of a fast generator, which PyTorch's seeds. So p is rounded to a 32,768th; what is
    kept is scaled by just that. PyTorch draws a number for each, which took 15% of a small encoder's step in bf16.
    """
    kept = max(1, round((1 - p) * 2**15))
    generator = np.random.SFC64(torch.randint(2**62, ()).item())
    words = generator.random_raw((shape.numel() + 3) // 4)  # 64 bits each
    bits = torch.from_numpy(words.view(np.int16))[: shape.numel()].view(shape)
    # kept if below `kept` in its range: then the sign fills all bits, which let the scale's bit pattern through
    bits.bitwise_right_shift_(1).sub_(kept - 2**14).bitwise_right_shift_(15)
    as_int = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    scale = torch.tensor(2**15 / kept, dtype=dtype).view(as_int).item()
    return bits.to(as_int).bitwise_and_(scale).view(dtype)


class LayerNorm(nn.LayerNorm):
    """As nn.LayerNorm in float32; under autocast its result is in autocast's precision.

    The products that read it round it to that in any case. Here the residual connection beside them carries the rounded
    states, too, half as wide: a tenth of a small encoder's step in bf16 (benchmarks/train_throughput.py).
    """

    def forward(self, x):
        device = x.device.type
        if not torch.is_autocast_enabled(device):
            return super().forward(x)
        narrow = torch.get_autocast_dtype(device)
        if device == "cuda" and x.dtype == narrow:  # it computes in float32 itself; copies of x would take as long
            with torch.autocast(device, enabled=False):  # which would make them
                return F.layer_norm(x, self.normalized_shape, self.weight.to(narrow), self.bias.to(narrow), self.eps)
        return super().forward(x.to(self.weight.dtype)).to(narrow)


def replace_dropout(module):
    """Put `Dropout` in the place of every nn.Dropout in a module."""
    _replace(module, nn.Dropout, lambda plain: Dropout(plain.p))


def replace_layer_norm(module):
    """Put `LayerNorm` in the place of every nn.LayerNorm in a module, parameters and all."""

    def ours(plain):
        layer = LayerNorm(plain.normalized_shape, plain.eps, device="meta")
        layer.weight, layer.bias = plain.weight, plain.bias
        return layer

    _replace(module, nn.LayerNorm, ours)


def _replace(module, kind, ours):
    for parent in module.modules():
        for name, child in parent.named_children():
            if type(child) is kind:
                setattr(parent, name, ours(child).train(child.training))
