"""Attention over groups of packed sentences against attention sentence by sentence and head by head."""

import numpy as np
import pytest
import torch

from model import attention
from model.attention import GroupAttention, group
from model.layers import draw_kept

HEADS, D = 3, 4


def one_by_one(query, states, lengths, masks):
    """Each sentence and head on its own, with the factors of dropout given: masks[i][h] (asking, length)."""
    *own, key, value = states.unflatten(1, (-1, HEADS, D)).unbind(1)  # (tokens, heads, d)
    results = []
    for i, end in enumerate(np.cumsum(lengths)):
        tokens = slice(end - lengths[i], end)
        asking = own[0][tokens] if own else query[i].view(1, HEADS, D)
        heads = []
        for h in range(HEADS):
            weights = (asking[:, h] @ key[tokens, h].T / D**0.5).softmax(1) * masks[i][h]
            heads.append(weights @ value[tokens, h])
        results.append(torch.cat(heads, dim=1))
    return torch.cat(results)


@pytest.mark.parametrize("all_ask", [True, False])
@pytest.mark.parametrize(
    "lengths, few_shapes",
    [
        *[([5], False), ([8, 8], False), ([1, 2, 3, 20], False), ([16, 4, 15], False)],
        *[([30, 17, 16, 9, 8, 8, 3, 2, 1], few_shapes) for few_shapes in (False, True)],
        ([25, 17, 17, 11] + [7] * 61, True),
    ],
)
def test_groups_equal_one_by_one(lengths, few_shapes, all_ask, monkeypatch):
    lengths, masks = np.array(lengths), []

    def recorded(shape, p, dtype):
        kept = draw_kept(shape, p, dtype)
        masks.extend(kept.unflatten(0, (-1, HEADS)))  # a sentence's (heads, asking, longest)
        return kept

    monkeypatch.setattr(attention, "draw_kept", recorded)
    torch.manual_seed(0)
    behind = 5  # tokens of no sentence
    shape = lengths.sum() + behind, (3 if all_ask else 2) * HEADS * D
    states = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    query = None if all_ask else torch.randn(len(lengths), HEADS * D, dtype=torch.float64, requires_grad=True)
    inputs = [states] if all_ask else [states, query]
    found = GroupAttention.apply(query, states, group(lengths, HEADS, few_shapes), D, 0.3)
    fell = torch.cat([mask.flatten() == 0 for mask in masks])
    assert fell.any() and not fell.all()
    masks = [mask[:, : n if all_ask else 1, :n] for mask, n in zip(masks, lengths)]
    expected = one_by_one(query, states, lengths, masks)
    if all_ask:
        expected = torch.cat([expected, torch.zeros(behind, HEADS * D)])
    torch.testing.assert_close(found, expected)
    ahead = torch.randn_like(expected)
    for ours, slow in zip(torch.autograd.grad(found, inputs, ahead), torch.autograd.grad(expected, inputs, ahead)):
        torch.testing.assert_close(ours, slow)


def test_groups_are_of_similar_lengths_and_whole():
    lengths = np.array([40, 33, 32, 9, 8, 8, 1])
    groups = group(lengths, 2)
    assert [g.shape for g in groups] == [(4, 40), (2, 32), (2, 9), (6, 8)]
    assert [(g.sentences.start, g.sentences.stop) for g in groups] == [(0, 2), (2, 3), (3, 4), (4, 7)]
    assert [(g.tokens.start, g.tokens.stop) for g in groups] == [(0, 73), (73, 105), (105, 114), (114, 131)]
    assert [len(g.padding) for g in groups] == [2 * 7, 0, 0, 2 * 7]


def test_few_shapes_are_few_and_cost_little():
    rng = np.random.default_rng(0)
    batches = [np.sort(np.minimum(rng.geometric(0.07, 384) + 5, 50))[::-1] for _ in range(50)]

    def shapes_and_cost(few_shapes):
        shapes = []
        for lengths in batches:
            groups = group(lengths, 4, few_shapes)
            assert [g.sentences.start for g in groups] == [0] + [g.sentences.stop for g in groups[:-1]]
            assert (groups[-1].sentences.stop, groups[-1].tokens.stop) == (384, lengths.sum())
            shapes += [g.shape for g in groups]
        return len(set(shapes)), sum(n * longest**2 for n, longest in shapes)

    (plain, cost), (few, cost_of_few) = shapes_and_cost(False), shapes_and_cost(True)
    assert few < plain / 3 and cost_of_few < 1.15 * cost


def test_bf16_is_near_float32():
    torch.manual_seed(0)
    lengths = np.array([19, 12, 11, 4])
    states = torch.randn(lengths.sum(), 3 * HEADS * D, requires_grad=True)
    groups, results = group(lengths, HEADS), []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(1)
        found = GroupAttention.apply(None, states.to(dtype), groups, D, 0.2)
        assert found.dtype == dtype
        results.append((found.float(), torch.autograd.grad(found.float().square().sum(), states)[0]))
    for ours, exact in zip(*results):
        torch.testing.assert_close(ours, exact, atol=0.06, rtol=0.06)
        assert not torch.equal(ours, exact)
