"""Sentences through a transformer with next to no padding: tokens side by side, attention inside each sentence.

All but attention sees nothing but tokens. For attention on a CPU sentences of one length are a dense block (n,
length); under dropout those of similar length are a group, which is padded (model/attention.py). That is faster than
padding, however well sorted (the README has figures). On a GPU there are many rows of equal width, with whole sentences
side by side in each: little padding, few shapes, and a mask is all that attention needs.
"""

import numpy as np
import torch

from model.attention import Attention
from model.layers import replace_layer_norm
from model.pooling import FIRST_ALONE, NEEDS_ALL_LAYERS, states_to_pool

WIDTH = 64  # tokens, of rows on a GPU
# families whose self-attention is BERT's and whose only notion of position is `position_ids`
FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
OFFSET_POSITIONS = (
    *("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "roberta-prelayernorm", "mpnet"),
    *("longformer", "data2vec-text", "xmod", "ibert", "luke"),
)


def position_offset(config):
    """The position of a sentence's first token: RoBERTa's family counts from the padding index + 1."""
    return config.pad_token_id + 1 if config.model_type in OFFSET_POSITIONS else 0


def make_packable(backbone):
    """Let `backbone` take packed sentences beside padded ones, its states between layers in the precision of the step.

    False where its family cannot.
    """
    config = backbone.config
    if config.model_type not in FAMILIES or config._attn_implementation != "sdpa" or config.is_decoder:
        return False
    layers = backbone.encoder.layer
    for layer in layers:
        layer.attention = Attention(layer.attention, last=layer is layers[-1])
    last = layers[-1].output
    norm = last.LayerNorm  # what it gives is pooled, in float32
    replace_layer_norm(backbone)
    last.LayerNorm = norm
    return True


def pack(tokens, rows):
    """Rows (n,) of packed tokens as one row, without padding; those of equal length are beside each other.

    Returns:
        (ids, blocks): (total tokens,) int64, and a list of (sentences, length), one for each length.
    """
    lengths = tokens.lengths_of(rows)
    ids = tokens.ids[np.repeat(tokens.offsets[rows], lengths) + positions(lengths)].astype(np.int64)
    first = np.flatnonzero(np.diff(lengths, prepend=-1))  # of each block
    counts = np.diff(first, append=len(lengths))
    return torch.from_numpy(ids), list(zip(counts.tolist(), lengths[first].tolist()))


def lengths_of(blocks):
    """The tokens of each sentence, (n,), in `pack`'s blocks."""
    return np.repeat([length for _, length in blocks], [n for n, _ in blocks])


def positions(lengths):
    """0, 1, ..., length - 1 for each sentence, one after the other: (total tokens,)."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)


def filling(n):
    """How many tokens, or rows, to add to n, at most a 64th, so that micro-batches of about a size share theirs."""
    return -n % 2 ** max(0, n.bit_length() - 7)


def lay_in_rows(lengths):
    """Sentences side by side in rows of equal width, in few rows: each goes where it leaves the least room (best fit).

    Args:
        lengths: (n,) tokens of each, longest first.

    Returns:
        (starts, slots, rows, width): where each begins in all rows one behind the other, and its slot, 0 for the first
        in its row, (n,) int64 both; how many rows, filled up; their width, a multiple of WIDTH.
    """
    width = -(-int(lengths[0]) // WIDTH) * WIDTH
    room = [[] for _ in range(width + 1)]  # where rows go on that have room for so many tokens
    starts, rows = np.empty(len(lengths), dtype=np.int64), 0
    bounds = np.flatnonzero(np.diff(lengths, prepend=-1, append=-1))  # of sentences of one length
    for first, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist()):
        length = int(lengths[first])
        while first < stop:
            least = next((k for k in range(length, width + 1) if room[k]), None)
            if least is None:
                more = -(-(stop - first) // (width // length))
                room[width] = [row * width for row in range(rows, rows + more)]
                rows += more
                continue
            taken, room[least] = room[least][: stop - first], room[least][stop - first :]
            starts[first : first + len(taken)] = taken
            room[least - length] += [start + length for start in taken]
            first += len(taken)
    order = np.argsort(starts)
    row = starts[order] // width
    slots = np.empty_like(starts)
    slots[order] = np.arange(len(starts)) - np.searchsorted(row, row)
    return starts, slots, rows + filling(rows), width


def states_in_rows(bert, ids, where, slots, kept, pooling, most=None):
    """Sentences in rows through the backbone.

    Args:
        bert: the backbone.
        ids, where, slots: (rows, width) each token's id and position, and its sentence's slot, -1 for padding.
        kept: (n,) int64, which of all rows' tokens suffice, for pooling that looks at the first ones alone; else which
            of all rows' slots are wanted.
        pooling: how; None for none.
        most: no row has more sentences.

    Returns:
        (n, hidden): states of the first tokens, or means over tokens, float32. Without pooling all rows' last states,
        (rows x width, hidden).
    """
    mask = slots[:, None, :, None] == slots[:, None, None, :]  # padding attends to padding: a row of False is no mask
    first_alone, every_layer = pooling in FIRST_ALONE, pooling in NEEDS_ALL_LAYERS
    chosen = kept if first_alone else None
    outputs = bert(
        input_ids=ids, attention_mask=mask, position_ids=where, kept=chosen, output_hidden_states=every_layer
    )
    states = states_to_pool(outputs, pooling)
    if pooling is None or first_alone:
        return states.flatten(0, 1)
    belongs = slots[:, None] == torch.arange(most, device=slots.device)[:, None]  # (rows, most, width)
    weights = belongs / belongs.sum(2, keepdim=True).clamp(min=1)
    with torch.autocast(states.device.type, enabled=False):
        return (weights @ states.float()).flatten(0, 1).index_select(0, kept)
