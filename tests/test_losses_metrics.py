"""Losses and metrics against slow, obvious second implementations, scipy and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, rankdata
from sklearn.metrics.pairwise import (
    paired_cosine_distances,
    paired_euclidean_distances,
    paired_manhattan_distances,
)

from model.losses import contrastive_loss
from model.metrics import CORRELATIONS, correlations, evaluate_sts
from model.pooling import pool, states_to_pool
from model.utils import pytorch_cos_sim


def slow_contrastive_loss(anchors, positives, negatives, temperature):
    """The formula, one number at a time."""

    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    total = 0.0
    for i, anchor in enumerate(anchors):
        terms = [math.exp(cosine(anchor, candidate) / temperature) for candidate in [*positives, *negatives]]
        total -= math.log(math.exp(cosine(anchor, positives[i]) / temperature) / sum(terms))
    return total / len(anchors)


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_contrastive_loss(batch, temperature):
    torch.manual_seed(batch)
    embeddings = torch.randn(3, batch, 5) * 3
    expected = slow_contrastive_loss(*embeddings.tolist(), temperature)
    assert contrastive_loss(*embeddings[:2], [embeddings[2]], temperature).item() == pytest.approx(
        expected, rel=1e-5, abs=1e-6
    )


def test_contrastive_loss_equals_sentence_transformers():
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    torch.manual_seed(0)
    embeddings = list(torch.randn(3, 9, 16))
    theirs = MultipleNegativesRankingLoss(model=None, scale=20.0).compute_loss_from_embeddings(embeddings, None)
    assert contrastive_loss(*embeddings[:2], [embeddings[2]], 0.05).item() == pytest.approx(theirs.item(), rel=1e-6)


def test_contrastive_loss_takes_half_precision():
    torch.manual_seed(0)
    embeddings = torch.randn(3, 9, 16).bfloat16()
    loss = contrastive_loss(*embeddings[:2], [embeddings[2]], 0.05)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(contrastive_loss(*embeddings[:2].float(), [embeddings[2].float()], 0.05).item())


def slow_correlations(a, b, scores):
    similarities = {
        "cosine": 1 - paired_cosine_distances(a, b),
        "euclidean": -paired_euclidean_distances(a, b),
        "manhattan": -paired_manhattan_distances(a, b),
        "dot": np.array([np.dot(x, y) for x, y in zip(a, b)]),
    }
    results = {}
    for name, values in similarities.items():
        results[f"{name}_pearson"] = 100 * np.corrcoef(values, scores)[0, 1]
        results[f"{name}_spearman"] = 100 * pearsonr(rankdata(values), rankdata(scores)).statistic
    return results


def test_correlations():
    generator = np.random.default_rng(0)
    a = generator.normal(size=(200, 8)).astype(np.float32)
    scores = np.round(generator.uniform(0, 5, 200), 1)  # with ties, as people's scores have
    b = a * (scores[:, None] / 5) + generator.normal(size=(200, 8)).astype(np.float32)
    results = correlations(torch.from_numpy(a), b, scores)
    expected = slow_correlations(a, b, scores)
    assert tuple(expected) == CORRELATIONS
    assert list(results) == ["avg", *CORRELATIONS]
    for name, value in expected.items():
        assert results[name] == pytest.approx(value, abs=1e-6), name
    assert results["avg"] == pytest.approx(np.mean(list(expected.values())))
    assert 20 < results["cosine_spearman"] < 100


def test_evaluate_sts_takes_any_encode():
    vectors = {"가": [1.0, 0.0], "나": [1.0, 0.1], "다": [0.0, 1.0], "라": [0.5, 0.5]}
    sentences = ["가", "가", "가", "나", "라", "다"]
    results = evaluate_sts(lambda batch: np.array([vectors[s] for s in batch]), sentences, [5.0, 3.0, 0.0])
    assert results["cosine_spearman"] == pytest.approx(100)


def test_undefined_correlations():
    same = np.ones((3, 4))
    assert math.isnan(correlations(same, same, [1, 2, 3])["avg"])
    with pytest.raises(ValueError, match="two different scores"):
        correlations(same, same, [2, 2, 2])


def test_pytorch_cos_sim():
    a, b = torch.randn(3, 5), torch.randn(4, 5)
    expected = [[torch.dot(x, y) / (x.norm() * y.norm()) for y in b] for x in a]
    torch.testing.assert_close(pytorch_cos_sim(a, b), torch.tensor(expected))
    torch.testing.assert_close(pytorch_cos_sim(a[0], b.numpy()), torch.tensor(expected[:1]))
    assert pytorch_cos_sim([1, 0], [[2, 0], [0, 3]]).tolist() == [[1, 0]]


def test_pooling_against_loops():
    from types import SimpleNamespace

    torch.manual_seed(0)
    layers = tuple(torch.randn(3, 6, 4) for _ in range(4))
    outputs = SimpleNamespace(last_hidden_state=layers[-1], hidden_states=layers)
    lengths = [6, 3, 1]
    mask = torch.tensor([[1] * n + [0] * (6 - n) for n in lengths])

    def mean_over_tokens(states):
        return torch.stack([states[i, :n].mean(0) for i, n in enumerate(lengths)])

    expected = {
        "pooler": torch.stack([layers[-1][i, 0] for i in range(3)]) * 2,
        "cls": torch.stack([layers[-1][i, 0] for i in range(3)]),
        "mean": mean_over_tokens(layers[-1]),
        "mean_first_last": (mean_over_tokens(layers[1]) + mean_over_tokens(layers[-1])) / 2,
        "mean_top2": (mean_over_tokens(layers[-2]) + mean_over_tokens(layers[-1])) / 2,
    }
    for name, value in expected.items():
        states = states_to_pool(outputs, name)
        torch.testing.assert_close(pool(states, mask, name, pooler=lambda states: states[:, 0] * 2), value)
    torch.testing.assert_close(pool(layers[-1], None, "mean"), layers[-1].mean(1))
