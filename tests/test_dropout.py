"""Dropout: whose elements fall, how often, how what stays is scaled."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model.checkpoint import load_encoder
from model.dropout import Dropout, replace_dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.93])
def test_a_share_p_falls_and_the_rest_is_scaled(p, dtype):
    torch.manual_seed(0)
    x = torch.full((1001, 999), 3.0, dtype=dtype, requires_grad=True)
    y = Dropout(p)(x)
    y.sum().backward()
    assert y.dtype == dtype and y.shape == x.shape
    kept = F.dropout(torch.full_like(x, 3.0), p).max()  # PyTorch's value of what stays
    fell = y == 0
    assert torch.equal(y, torch.where(fell, 0, y.max())) and y.max().item() == pytest.approx(kept.item(), rel=1e-3)
    assert torch.equal(x.grad == 0, fell)
    tolerance = 5 * (p * (1 - p) / y.numel()) ** 0.5
    assert fell.float().mean().item() == pytest.approx(p, abs=tolerance)
    # four fates come of one word of 64 bits: each as often as the others, and no two of them together too often
    fates = fell.view(-1)[: 4 * (y.numel() // 4)].view(-1, 4).double()
    assert fates.mean(0).tolist() == pytest.approx([p] * 4, abs=2 * tolerance)
    assert torch.corrcoef(fates.T).fill_diagonal_(0).abs().max() < 5 / len(fates) ** 0.5
    assert not torch.equal(Dropout(p)(x) == 0, fell)


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 0), (2, 3, 7)])
def test_any_shape(shape):
    x = torch.ones(shape)
    y = Dropout(0.5)(x)
    assert y.shape == x.shape and set(y.view(-1).tolist()) <= {0.0, 2.0}
    across = torch.ones(5, 7).T  # not contiguous
    assert Dropout(0.5)(across).shape == (7, 5)


def test_the_ends_and_evaluation_are_pytorchs():
    x = torch.randn(50)
    assert torch.equal(Dropout(0.0)(x), x) and torch.equal(Dropout(0.3).eval()(x), x)
    assert torch.equal(Dropout(1.0)(x), torch.zeros(50))


def test_an_encoder_has_no_other(tiny_bert):
    encoder = load_encoder(tiny_bert, dropout=0.2)
    found = [module for module in encoder.modules() if isinstance(module, nn.Dropout)]
    assert len(found) > 2 and all(type(module) is Dropout for module in found)
    assert {module.p for module in found} == {0.2}


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_stays(training):
    model = nn.Sequential(nn.Dropout(0.2)).train(training)
    replace_dropout(model)
    assert type(model[0]) is Dropout and model[0].training is training
