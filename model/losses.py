"""Losses: pure functions of tensors. Embeddings in, a scalar out."""

import torch
import torch.nn.functional as F


def contrastive_loss(anchors, positives, negatives, temperature):
    """In-batch contrastive cross entropy with hard negatives: supervised SimCSE.

    Row i is to pick its own positive among all 2B candidates of the batch:

        loss = mean_i  -log( exp(cos(a_i, p_i)/T) / sum_j [exp(cos(a_i, p_j)/T) + exp(cos(a_i, n_j)/T)] )

    Gao, Yao and Chen 2021, SimCSE (arXiv:2104.08821), section 4.2, equation 5.

    Args:
        anchors, positives, negatives: (B, d) each, any scale; row i of each belongs to example i.
        temperature: T > 0.

    Returns:
        A scalar, in float32 whatever the precision of the embeddings.
    """
    anchors = F.normalize(anchors.float(), dim=-1)
    candidates = F.normalize(torch.cat([positives, negatives]).float(), dim=-1)  # (2B, d)
    similarities = anchors @ candidates.T / temperature  # (B, 2B)
    labels = torch.arange(len(anchors), device=anchors.device)
    return F.cross_entropy(similarities, labels)
