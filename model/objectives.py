"""What a training step encodes, and which loss the embeddings meet.

An objective is a callable (encode, batch) -> scalar loss. `batch` holds indices of sentences, (B, sentences an
example has); `encode` maps a flat index array (n,) to embeddings (n, d) with their graph.
"""

from model.losses import contrastive_loss


def simcse(encode, batch, temperature):
    """Supervised SimCSE: batch (B, 3) of premise, entailment, contradiction; all 3B sentences in one pass."""
    anchors, positives, negatives = encode(batch.T.reshape(-1)).chunk(3)  # (B, d) each
    return contrastive_loss(anchors, positives, negatives, temperature)
