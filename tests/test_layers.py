"""Dropout: whose elements fall, how often, how what stays is scaled. LayerNorm: its precision."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model.checkpoint import load_encoder
from model.layers import Dropout, LayerNorm, replace_dropout, replace_layer_norm


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
    *found, last = [module for module in encoder.modules() if isinstance(module, nn.LayerNorm)]
    assert len(found) > 2 and all(type(module) is LayerNorm for module in found)
    assert last is encoder.bert.encoder.layer[-1].output.LayerNorm and type(last) is nn.LayerNorm  # it is pooled


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_stays(training):
    model = nn.Sequential(nn.Dropout(0.2), nn.LayerNorm(4)).train(training)
    replace_dropout(model)
    replace_layer_norm(model)
    assert [type(layer) for layer in model] == [Dropout, LayerNorm]
    assert model[0].training is training and model[1].training is training


def test_layer_norm_computes_in_float32_and_is_rounded_once():
    torch.manual_seed(0)
    plain = nn.LayerNorm(64, eps=1e-3)
    nn.init.normal_(plain.weight)
    nn.init.normal_(plain.bias)
    model = nn.Sequential(nn.LayerNorm(64, eps=1e-3))
    model[0].weight, model[0].bias = plain.weight, plain.bias
    replace_layer_norm(model)
    assert model[0].weight is plain.weight and model[0].bias is plain.bias
    x = torch.randn(1000, 64, dtype=torch.bfloat16)
    assert torch.equal(model(x.float()), plain(x.float())) and torch.equal(model(x), plain(x))
    expected = plain(x.float()).to(torch.bfloat16)
    grad = torch.randn_like(expected)
    expected.backward(grad)
    wanted = plain.weight.grad, plain.bias.grad
    plain.weight.grad = plain.bias.grad = None
    with torch.autocast("cpu", torch.bfloat16):
        found = model(x)
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected)
    found.backward(grad)
    assert torch.equal(plain.weight.grad, wanted[0]) and torch.equal(plain.bias.grad, wanted[1])
