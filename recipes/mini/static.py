"""Word vectors alone, as they are and tuned: the baseline that mini has to beat, and one of its teachers."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from data.sentences import read_pairs, read_sentences
from data.sts import read_sts
from data.tokenize import tokenize
from model.checkpoint import load_encoder
from model.losses import cosent_loss, symmetric_contrastive_loss

STEPS, BATCH, LR = 1000, 128, 2e-3  # chosen on KorSTS dev


class StaticEncoder:
    """The sum of a sentence's word vectors, frequent pieces weighing less: SIF (Arora, Liang and Ma 2017), a = 3e-4.

    Args:
        start: a model folder whose word embeddings are the vectors (recipes.mini.make_start).
        data: folder with sentences.txt, which gives the frequencies (recipes.mini.make_data).
    """

    def __init__(self, start, data):
        start = load_encoder(start, "mean")
        self.data, self.tokenizer = data, start.tokenizer
        vectors = start.bert.get_input_embeddings().weight.detach()
        tokens = tokenize(read_sentences(data / "sentences.txt"), self.tokenizer, 128)
        counts = np.bincount(tokens.ids, minlength=len(vectors))
        weights = 3e-4 / (3e-4 + counts / counts.sum())
        weights[self.tokenizer.all_special_ids] = 0
        self.vectors = nn.Embedding.from_pretrained(vectors * torch.from_numpy(weights)[:, None].float(), freeze=False)

    def encode(self, sentences):
        """(n, d) of n sentences."""
        return self.embed(sentences).detach()

    def embed(self, sentences):
        """As `encode`, with the graph."""
        tokens = tokenize(list(sentences), self.tokenizer, 64)
        ids, offsets = torch.from_numpy(tokens.ids.astype(np.int64)), torch.from_numpy(tokens.offsets[:-1])
        return F.embedding_bag(ids, self.vectors.weight, offsets, mode="sum")

    def tune(self, seed):
        """Train the vectors further: CoSENT on KorSTS train and KLUE-STS train (0.5), contrastive on pairs (0.5).

        Returns:
            The encoder itself.
        """
        generator = np.random.default_rng(seed)
        pairs = np.array(read_pairs(self.data / "pairs.tsv"))
        graded = []
        for name, weight in (("korsts_train.tsv", 1.0), ("klue_sts_train.tsv", 0.5)):
            sts = read_sts([self.data / name])
            graded.append((weight, np.array([sts.sentences1, sts.sentences2]).T, torch.from_numpy(sts.scores)))
        optimizer = torch.optim.Adam(self.vectors.parameters(), lr=LR)
        for step in range(STEPS):
            optimizer.param_groups[0]["lr"] = LR * min((step + 1) / 50, 1 - step / STEPS)
            a, b = pairs[generator.integers(0, len(pairs), BATCH)].T
            loss = 0.5 * symmetric_contrastive_loss(self.embed(a), self.embed(b), 0.05)
            for weight, sentences, scores in graded:
                rows = generator.integers(0, len(sentences), BATCH)
                a, b = sentences[rows].T
                loss = loss + weight * cosent_loss(self.embed(a), self.embed(b), scores[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return self
