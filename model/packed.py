"""Sentences through a transformer without any padding: all their tokens as one row, attention inside each sentence.

Sentences of one length are a dense block (n, length), so attention needs neither padding nor a mask, and every other
operation sees nothing but tokens. On CPUs this is faster than padding, however well sorted (the README has figures); on
a GPU the many small attentions would not be, and PyTorch's kernel for unequal lengths has no dropout.
"""

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

# families that attend by transformers' AttentionInterface and whose only notion of position is `position_ids`
FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "roberta-prelayernorm", "mpnet")


def position_offset(config):
    """The position of a sentence's first token: RoBERTa's family counts from the padding index + 1."""
    return config.pad_token_id + 1 if config.model_type in OFFSET_POSITIONS else 0


def make_packable(backbone):
    """Let `backbone` take packed sentences beside padded ones; False where its family cannot."""
    if backbone.config.model_type not in FAMILIES or backbone.config._attn_implementation != "sdpa":
        return False
    AttentionInterface.register("sdpa_blocks", attend_in_blocks)
    AttentionMaskInterface.register("sdpa_blocks", sdpa_mask)
    backbone.set_attn_implementation("sdpa_blocks")
    return True


def pack(tokens, rows, device):
    """Rows of packed tokens as one row, without padding.

    Args:
        tokens: packed sentences with `ids` and `offsets`.
        rows: (n,) indices of sentences, those of equal length beside each other.
        device: where the ids are put.

    Returns:
        (ids, blocks): (total tokens,) int64, and a list of (sentences, length), one for each length.
    """
    lengths = tokens.offsets[rows + 1] - tokens.offsets[rows]
    ids = tokens.ids[np.repeat(tokens.offsets[rows], lengths) + positions(lengths)].astype(np.int64)
    first = np.flatnonzero(np.diff(lengths, prepend=-1))  # of each block
    counts = np.diff(first, append=len(lengths))
    return torch.from_numpy(ids).to(device), list(zip(counts.tolist(), lengths[first].tolist()))


def positions(lengths):
    """0, 1, ..., length - 1 for each sentence, one after the other: (total tokens,)."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)


def attend_in_blocks(module, query, key, value, attention_mask, dropout=0.0, scaling=None, blocks=None, **kwargs):
    """transformers' attention interface: (1, heads, tokens, d) each, `blocks` as `pack` gives them.

    Without `blocks` the input is padded and attention is the ordinary one.
    """
    if blocks is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    sizes = [n * length for n, length in blocks]
    parts = []
    for (n, length), *block in zip(blocks, *(x[0].transpose(0, 1).split(sizes) for x in (query, key, value))):
        q, k, v = (x.unflatten(0, (n, length)).transpose(1, 2) for x in block)  # (n, heads, length, d)
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling)
        parts.append(attended.transpose(1, 2).flatten(0, 1))  # (n * length, heads, d)
    return torch.cat(parts).unsqueeze(0), None
