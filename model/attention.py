"""Self-attention of BERT and its relatives, for padded and for packed sentences."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from model.layers import draw_kept

STEP = 8  # lengths in one group differ by less than this


class Attention(nn.Module):
    """Self-attention and what follows it up to LayerNorm, in the place of transformers' module, parameters and all.

    It is always scaled_dot_product_attention's or the groups' below: no attention weights come out, and
    `set_attn_implementation` does not change it.

    Args:
        plain: transformers' module.
        last: whether it is the last layer's, of which `kept` tokens suffice.
    """

    def __init__(self, plain, last):
        super().__init__()
        self.self, self.output, self.last = plain.self, plain.output, last

    def forward(self, states, attention_mask=None, kept=None, blocks=None, groups=None, **kwargs):
        """(n, length, hidden) states into (states of the same shape, None), as transformers calls it.

        Packed sentences are one row, n = 1: `blocks` is what packed.pack gives. `groups` are the same sentences as
        Groups, for dropout. On a GPU they lie in many rows, and `attention_mask` tells them apart.
        `kept` is which tokens the last layer is to give: a slice of every row, numbers of all rows' tokens (then the
        result is one row), None for all.
        """
        if not self.last or kept is None:
            kept = slice(None)
        by_number = isinstance(kept, torch.Tensor)
        asking = states.flatten(0, 1).index_select(0, kept)[None] if by_number else states[:, kept]
        all_ask = asking.shape[:2] == states.shape[:2]
        dropout = self.self.dropout.p if self.training else 0.0
        if blocks is None and by_number:  # in rows
            attended = self._attend(*self._project(states, states), attention_mask, dropout)
            attended = attended.flatten(0, 1).index_select(0, kept)[None]
        elif blocks is None:
            mask = None if attention_mask is None else attention_mask[:, :, kept]
            attended = self._attend(*self._project(asking, states), mask, dropout)
        elif groups is not None:
            projected = self._project_at_once(None if all_ask else asking[0], states[0])
            attended = GroupAttention.apply(*projected, groups, self.self.attention_head_size, dropout)[None]
        else:
            sizes = [n * length for n, length in blocks]
            query, key, value = (x[0] for x in self._project(asking, states))
            parts = zip(query.split(sizes if all_ask else [n for n, _ in blocks]), key.split(sizes), value.split(sizes))
            parts = [[x.unflatten(0, (n, -1)) for x in part] for (n, _), part in zip(blocks, parts)]
            attended = torch.cat([self._attend(*part, dropout=dropout).flatten(0, 1) for part in parts])[None]
        return self.output(attended, asking), None

    def _project(self, asking, states):
        return self.self.query(asking), self.self.key(states), self.self.value(states)

    def _attend(self, query, key, value, mask=None, dropout=0.0):
        """(n, length, hidden) each, the query's length being its own."""
        heads = (-1, self.self.attention_head_size)
        query, key, value = (x.unflatten(-1, heads).transpose(1, 2) for x in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value, mask, dropout).transpose(1, 2).flatten(2)

    def _project_at_once(self, asking, states):
        """(query, states) of GroupAttention for packed states (tokens, hidden) and, if not all, those that ask."""
        layers = [self.self.query, self.self.key, self.self.value]
        query = None if asking is None else layers.pop(0)(asking)
        if all(type(layer) is nn.Linear for layer in layers):  # nobody's adapters
            # one product: its input is read once
            states = F.linear(states, torch.cat([x.weight for x in layers]), torch.cat([x.bias for x in layers]))
        else:
            states = torch.cat([layer(states) for layer in layers], dim=-1)
        return query, states


class Group:
    """Packed sentences of about equal length, each padded to the longest, every head apart.

    Short sentences cost little arithmetic, but every call costs time, and in groups there are few.

    Args:
        sentences, tokens: slices, which of all sentences and of all their tokens they are.
        lengths: (n,) their tokens.
        heads: of the attention.
        step: what "the longest" is rounded up to, a multiple of it.

    Attributes:
        shape: (n x heads, longest).
        bias: (n x heads, 1, longest) float32, to be added to scores: 0, or -inf on padding.
        padding: int64, which of the n x heads x longest places are padding.
    """

    def __init__(self, sentences, tokens, lengths, heads, step=1):
        self.sentences, self.tokens, self.heads = sentences, tokens, heads
        column = np.arange(-(-lengths.max() // step) * step)
        self._real = np.repeat(column < lengths[:, None], heads, axis=0)  # (n x heads, longest)
        self._token = (np.cumsum(lengths) - lengths)[:, None, None] + np.minimum(column, lengths[:, None] - 1)[:, None]
        self.shape = self._real.shape
        self.bias = torch.from_numpy(np.where(self._real, 0, -np.inf).astype(np.float32)).unsqueeze(1)
        self.padding = torch.from_numpy(np.flatnonzero(~self._real))
        self._layouts = {}

    def layout(self, k):
        """Where k states of a token, side by side in (tokens x k x heads, d), stand in (k x n x heads x longest, d).

        Returns:
            (rows, places): the row at each place, a row of the same sentence on padding; the place of each row.
        """
        if k not in self._layouts:
            state, head = np.arange(k)[:, None, None, None], np.arange(self.heads)[:, None]
            rows = ((self._token * k + state) * self.heads + head).ravel()
            real = np.flatnonzero(np.broadcast_to(self._real, (k, *self.shape)))
            places = np.empty(len(real), dtype=np.int64)
            places[rows[real]] = real
            self._layouts[k] = torch.from_numpy(rows), torch.from_numpy(places)
        return self._layouts[k]


def group(lengths, heads, few_shapes=False):
    """Packed sentences, similar ones beside each other, as a list of Groups.

    Args:
        lengths: (n,) tokens of each sentence.
        heads: of the attention.
        few_shapes: sentences, longest first, are grouped so that other batches' groups have the same shapes: the
            next shorter ones fill a group up, and it is padded to a multiple of STEP.
    """
    ends, n = np.cumsum(lengths), len(lengths)
    stops = np.flatnonzero(np.diff((lengths - 1) // STEP, append=-1)) + 1
    if few_shapes:
        size = 2 ** max(0, n.bit_length() - 6)  # a 32nd to a 64th of the sentences
        stops = np.unique(np.minimum(-(-stops // size) * size, n))
    parts = map(slice, [0, *stops[:-1]], stops)
    step = STEP if few_shapes else 1
    return [Group(x, slice(ends[x.start] - lengths[x.start], ends[x.stop - 1]), lengths[x], heads, step) for x in parts]


class GroupAttention(torch.autograd.Function):
    """dropout(softmax(q k^T / sqrt(d))) v within each sentence and head, softmax in float32 at least; Group by Group.

    Vaswani et al. 2017 (arXiv:1706.03762), equation 1. PyTorch's fused kernel for CPUs knows no dropout, and what it
    takes instead is slow on short sentences.

    Args (of `apply`):
        query: None, or (n, heads x d) where each sentence's first token alone asks.
        states: queries, if `query` is None, keys and values side by side: (tokens, 3 or 2 x heads x d).
        groups: a list of Groups, all of the sentences; tokens behind them attend to nothing.
        d: size of a head.
        dropout: probability.

    Returns:
        (tokens, heads x d), or (n, heads x d).
    """

    @staticmethod
    def forward(ctx, query, states, groups, d, dropout):
        k = 3 if query is None else 2
        attended = states.new_empty(len(states if query is None else query), states.shape[1] // k)
        if query is None:
            attended[groups[-1].tokens.stop :] = 0
        saved = []
        for g in groups:
            part = states[g.tokens].view(-1, d).index_select(0, g.layout(k)[0]).view(k, *g.shape, d)
            *own, key, value = part
            q = own[0] if own else query[g.sentences].view(-1, 1, d)
            scores = torch.baddbmm(g.bias.to(q.dtype), q, key.mT, alpha=d**-0.5)
            probabilities = torch.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32))
            kept = draw_kept(scores.shape, dropout, q.dtype)
            result = torch.bmm(probabilities.to(q.dtype) * kept, value).view(-1, d)
            if own:
                torch.index_select(result, 0, g.layout(1)[1], out=attended[g.tokens].view(-1, d))
            else:
                attended[g.sentences] = result.view(-1, attended.shape[1])
            saved += part, probabilities, kept, g.padding, g.layout(1)[0], g.layout(k)[1]
        ctx.slices, ctx.tokens, ctx.k, ctx.d = [(g.sentences, g.tokens) for g in groups], len(states), k, d
        ctx.save_for_backward(query, *saved)  # all tensors: --cache_gradients lets go of what is saved here, no other
        return attended

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        query, *saved = ctx.saved_tensors
        k, d = ctx.k, ctx.d
        states_grad = grad.new_empty(ctx.tokens, k * grad.shape[1])
        states_grad[ctx.slices[-1][1].stop :] = 0
        query_grad = None if query is None else torch.empty_like(query)
        for (sentences, tokens), i in zip(ctx.slices, range(0, len(saved), 6)):
            part, probabilities, kept, padding, rows, places = saved[i : i + 6]
            part_grad = torch.empty_like(part)
            (*own, key, value), (*own_grad, key_grad, value_grad) = part, part_grad
            if own:
                q, q_grad = own[0], own_grad[0]
                result_grad = grad[tokens].view(-1, d).index_select(0, rows).index_fill_(0, padding, 0).view_as(q)
            else:
                q, q_grad, result_grad = (x[sentences].view(-1, 1, d) for x in (query, query_grad, grad))
            torch.bmm((probabilities.to(q.dtype) * kept).mT, result_grad, out=value_grad)
            softmax_grad = torch.bmm(result_grad, value.mT).mul_(kept).to(probabilities.dtype)
            scores_grad = torch._softmax_backward_data(softmax_grad, probabilities, -1, probabilities.dtype)
            scores_grad = scores_grad.mul_(d**-0.5).to(q.dtype)
            torch.bmm(scores_grad, key, out=q_grad)
            torch.bmm(scores_grad.mT, q, out=key_grad)
            torch.index_select(part_grad.view(-1, d), 0, places, out=states_grad[tokens].view(-1, d))
        return query_grad, states_grad, None, None, None
