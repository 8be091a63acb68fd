"""A batch's sentences through the encoder in micro-batches of similar length, so that almost no padding is computed.

The batch itself stays random and whole: its loss and its gradients are those of the padded batch.
"""

import numpy as np
import torch


def cut_by_length(lengths, max_tokens):
    """Indices 0..n-1 sorted by length and cut into micro-batches of at most `max_tokens` padded tokens each.

    Args:
        lengths: (n,) tokens of each sentence.
        max_tokens: bound on (sentences x longest) of a micro-batch; a sentence longer than that is alone.

    Returns:
        A list of index arrays, longest sentences first (memory that does not suffice shows at once).
    """
    order = np.argsort(-lengths, kind="stable")
    cuts, start = [], 0
    while start < len(order):
        size = max(1, int(max_tokens // max(1, lengths[order[start]])))
        cuts.append(order[start : start + size])
        start += size
    return cuts


def pad(tokens, rows, pad_id, device):
    """Rows of packed tokens as padded tensors.

    Args:
        tokens: packed sentences with `ids` and `offsets`.
        rows: (n,) indices of sentences.
        pad_id: the id that fills a row up.
        device: where the tensors are put.

    Returns:
        (input_ids, attention_mask), both (n, longest) int64 on `device`.
    """
    starts = tokens.offsets[rows]
    lengths = tokens.offsets[rows + 1] - starts
    columns = np.arange(lengths.max())
    mask = columns < lengths[:, None]  # (n, longest)
    input_ids = np.full(mask.shape, pad_id, dtype=np.int64)
    input_ids[mask] = tokens.ids[(starts[:, None] + columns)[mask]]
    return torch.from_numpy(input_ids).to(device), torch.from_numpy(mask.astype(np.int64)).to(device)


def encode_rows(encoder, tokens, rows, max_tokens):
    """Embeddings of some sentences, with their graph.

    Args:
        encoder: a SentenceEncoder, in whatever mode and precision the caller set.
        tokens: packed sentences; rows: (n,) indices into them, repeats allowed.
        max_tokens: size of a micro-batch, see cut_by_length.

    Returns:
        (n, d), in the order of `rows`.
    """
    cuts = cut_by_length(tokens.offsets[rows + 1] - tokens.offsets[rows], max_tokens)
    embeddings = [encoder(*pad(tokens, rows[cut], encoder.pad_id, encoder.device)) for cut in cuts]
    position = np.argsort(np.concatenate(cuts))  # where each row's embedding stands in the concatenation
    return torch.cat(embeddings)[torch.from_numpy(position).to(encoder.device)]
