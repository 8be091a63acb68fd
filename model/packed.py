"""Sentences through a transformer without padding: all their tokens as one row, attention inside each sentence.

All but attention sees nothing but tokens. For attention on a CPU sentences of one length are a dense block (n,
length); under dropout those of similar length are a group, which is padded (model/attention.py). That is faster than
padding, however well sorted (the README has figures). A GPU has a kernel for unequal lengths, in bf16.
"""

import numpy as np
import torch

from model.attention import Attention
from model.layers import replace_layer_norm
from model.pooling import NEEDS_ALL_LAYERS, states_to_pool

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


def packed_states(bert, ids, where, bounds, pooling, first_alone, longest=None, **inputs):
    """What `pooling` looks at of packed tokens, (tokens, hidden), or of the first of each sentence alone.

    Args:
        bert: the backbone.
        ids, where: (tokens,) their ids and positions.
        bounds, longest, inputs: see Attention.
    """
    outputs = bert(
        input_ids=ids[None],
        position_ids=where[None],
        kept=bounds[:-1].long() if first_alone else None,
        bounds=bounds,
        longest=longest,
        output_hidden_states=pooling in NEEDS_ALL_LAYERS,
        **inputs,
    )
    return states_to_pool(outputs, pooling)[0]


def positions(lengths):
    """0, 1, ..., length - 1 for each sentence, one after the other: (total tokens,)."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)


def filling(n):
    """How many tokens to add to n, at most a 64th, so that micro-batches of about a size share theirs."""
    return -n % 2 ** max(0, n.bit_length() - 7)


def filling_sentences(n):
    """Lengths of sentences, 1 to 33 tokens, to add to n tokens, about a 32nd at most, for the same end.

    They have attention of their own; how many they are depends on what n is filled up to.
    """
    step = 2 ** max(0, n.bit_length() - 6)
    count = max(1, step // 32)
    return np.diff(np.arange(count + 1) * (count + -(n + count) % step) // count)
