"""One-liners that users import."""

import torch
import torch.nn.functional as F


def pytorch_cos_sim(a, b):
    """Cosine similarity of every row of `a` with every row of `b`.

    Args:
        a, b: (n, d) and (m, d) tensors, arrays or nested lists; a single vector (d,) counts as one row.

    Returns:
        (n, m) float32 tensor.
    """
    a, b = (torch.atleast_2d(torch.as_tensor(x, dtype=torch.float32)) for x in (a, b))
    return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T


def default_device():
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
