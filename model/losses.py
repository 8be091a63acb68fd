"""Losses: pure functions of tensors. Embeddings (and labels) in, a scalar out, in float32 whatever their precision."""

import math

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

ROWS = 1024  # of a contrastive loss's similarity matrix that are in memory at a time


def contrastive_loss(anchors, positives, negatives, temperature, hard_negative_weight=1.0, left_out=None):
    """In-batch contrastive cross entropy, with or without hard negatives: SimCSE.

    Row i is to pick its own positive among the candidates of the whole batch:

        loss = mean_i  -log( exp(cos(a_i, p_i)/T) / sum_j [exp(cos(a_i, p_j)/T) + alpha^[i=j] exp(cos(a_i, n_j)/T)] )

    Gao, Yao and Chen 2021, SimCSE (arXiv:2104.08821), section 4.2, equation 5; alpha: appendix, "hard negatives".

    Args:
        anchors, positives: (B, d) each, any scale; row i of each belongs to example i.
        negatives: a list of (B, d), one for each negative an example has; may be empty.
        temperature: T > 0.
        hard_negative_weight: alpha > 0, how often an example's own negatives count; 1 is off.
        left_out: (B, candidates) bool: candidates that a row's sum leaves out. Candidates are all positives, then all
            first negatives, then all second ones and so on.
    """
    anchors = F.normalize(anchors.float(), dim=-1) / temperature
    candidates = F.normalize(torch.cat([positives, *negatives]).float(), dim=-1)
    labels = torch.arange(len(anchors), device=anchors.device)
    owner = labels.repeat(1 + len(negatives))  # the row that each candidate belongs to

    def sum_over(rows):
        similarities = anchors[rows] @ candidates.T  # (rows, candidates)
        if hard_negative_weight != 1:
            own_negatives = owner == labels[rows, None]
            own_negatives[:, : len(anchors)] = False  # those are the positives
            similarities = similarities + own_negatives * math.log(hard_negative_weight)
        if left_out is not None:
            similarities = similarities.masked_fill(left_out[rows], -torch.inf)
        return F.cross_entropy(similarities, labels[rows], reduction="sum")

    if len(anchors) <= ROWS:
        return sum_over(slice(None)) / len(anchors)
    chunks = (slice(start, start + ROWS) for start in range(0, len(anchors), ROWS))
    return sum(checkpoint(sum_over, rows, use_reentrant=False) for rows in chunks) / len(anchors)


def symmetric_contrastive_loss(a, b, temperature):
    """The mean of `contrastive_loss` from a to b and from b to a, (B, d) each: for pairs of equals.

    Radford et al. 2021, CLIP (arXiv:2103.00020), figure 3.
    """
    return (contrastive_loss(a, b, [], temperature) + contrastive_loss(b, a, [], temperature)) / 2


def cosine_regression_loss(a, b, scores):
    """mean_i (cos(a_i, b_i) - score_i)^2, the regression objective of Sentence-BERT.

    Reimers and Gurevych 2019 (arXiv:1908.10084), section 3.

    Args:
        a, b: (B, d) each, any scale.
        scores: (B,), 0 to 1.
    """
    return F.mse_loss(F.cosine_similarity(a.float(), b.float()), scores.float())


def cosent_loss(a, b, scores, scale=20.0):
    """A pair with a higher score is to have a higher cosine than every pair with a lower one: CoSENT.

        loss = log(1 + sum over i, j with score_i > score_j of exp(scale (cos_j - cos_i)))

    Su 2022 (https://kexue.fm/archives/8847), equation 6.

    Args:
        a, b: (B, d) each, any scale.
        scores: (B,), any scale: only their order counts.
    """
    cosines = scale * F.cosine_similarity(a.float(), b.float())  # (B,)
    wrong = cosines[None, :] - cosines[:, None]
    wrong = wrong.masked_fill(scores[:, None] <= scores[None, :], -torch.inf).flatten()  # picking would wait for a GPU
    return torch.logsumexp(torch.cat([wrong.new_zeros(1), wrong]), dim=0)
