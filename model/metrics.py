"""How well similarities of embeddings follow people's scores: the eight correlations of KoSimCSE's table."""

import math
import warnings

import numpy as np
from scipy.stats import DegenerateDataWarning, pearsonr, spearmanr

SIMILARITIES = ("cosine", "euclidean", "manhattan", "dot")
CORRELATIONS = tuple(f"{similarity}_{kind}" for similarity in SIMILARITIES for kind in ("pearson", "spearman"))


def correlations(embeddings1, embeddings2, scores):
    """Pearson and Spearman correlation of four similarities with the scores, x100, over the whole set.

    Distances (euclidean, manhattan) are negated. `avg` is the mean of the eight. The reference code averages
    over batches of 256; the field's standard, and ours, is one correlation over all pairs.

    Args:
        embeddings1, embeddings2: (n, d) arrays or CPU tensors; row i of each belongs to pair i.
        scores: (n,) numbers.

    Returns:
        {"avg": ..., "cosine_pearson": ..., "cosine_spearman": ..., ..., "dot_spearman": ...}; a correlation that does
        not exist (all similarities equal) is nan, and then so is avg.

    Raises:
        ValueError: fewer than two pairs, or all scores equal: no correlation is defined.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if len(scores) < 2 or (scores == scores[0]).all():
        raise ValueError(f"a correlation needs at least two different scores, found {len(scores)} pairs")
    a = np.asarray(embeddings1, dtype=np.float64)
    b = np.asarray(embeddings2, dtype=np.float64)
    dot = (a * b).sum(1)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    similarities = {
        "cosine": dot / np.maximum(norms, 1e-12),
        "euclidean": -np.linalg.norm(a - b, axis=1),
        "manhattan": -np.abs(a - b).sum(1),
        "dot": dot,
    }
    results = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # equal similarities: their answer, nan, is ours too
        for name, values in similarities.items():
            results[f"{name}_pearson"] = 100 * float(pearsonr(values, scores).statistic)
            results[f"{name}_spearman"] = 100 * float(spearmanr(values, scores).statistic)
    return {"avg": math.fsum(results.values()) / len(results), **results}


def evaluate_sts(encode, sentences, scores):
    """`correlations` of n sentence pairs under any `encode`, a callable from `sentences` to (2n, d) embeddings.

    `sentences` are the pairs' first ones followed by their second ones, in any form `encode` takes.
    """
    embeddings = encode(sentences)
    n = len(scores)
    return correlations(embeddings[:n], embeddings[n:], scores)
