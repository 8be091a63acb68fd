"""Word vectors alone, as they are and tuned: the baseline that mini has to beat, and one kind of its teachers.

python -m recipes.mini.static DATA --start START --seed 1 --output WORDS
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import trange

from data import flags
from data.errors import one_sentence_errors
from data.files import write_atomically
from data.sentences import read_pairs, read_sentences
from data.sts import read_sts
from data.tokenize import cached_tokens, load_tokenizer, tokenize
from model.checkpoint import load_encoder
from model.losses import cosent_loss, symmetric_contrastive_loss

STEPS, BATCH, LR = 1000, 128, 2e-3  # chosen on KorSTS dev
VECTORS_FILE = "vectors.npy"


class StaticEncoder:
    """The sum of a sentence's word vectors, which are (pieces, d)."""

    def __init__(self, tokenizer, vectors):
        self.tokenizer, self.vectors = tokenizer, vectors.float().requires_grad_()

    @classmethod
    def untuned(cls, start, data):
        """The word embeddings of `start`, frequent pieces weighing less: SIF (Arora, Liang and Ma 2017), a = 3e-4.

        Args:
            start: a model folder whose word embeddings are the vectors (recipes.mini.make_start).
            data: folder with sentences.txt, which gives the frequencies (recipes.mini.make_data).
        """
        start = load_encoder(start, "mean")
        vectors = start.bert.get_input_embeddings().weight.detach()
        tokens = cached_tokens(read_sentences(data / "sentences.txt"), start.tokenizer, 128)
        counts = np.bincount(tokens.ids, minlength=len(vectors))
        weights = 3e-4 / (3e-4 + counts / counts.sum())
        weights[start.tokenizer.all_special_ids] = 0
        return cls(start.tokenizer, vectors * torch.from_numpy(weights)[:, None].float())

    @classmethod
    def load(cls, folder):
        """What `save` wrote."""
        return cls(load_tokenizer(folder), torch.from_numpy(np.load(Path(folder) / VECTORS_FILE)))

    def save(self, folder):
        """Write vectors (in half precision) and tokenizer."""
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(folder)
        with write_atomically(folder / VECTORS_FILE) as file:
            np.save(file, self.vectors.detach().half().numpy())

    def encode(self, sentences):
        """(n, d) of n sentences."""
        return self.embed(sentences).detach()

    def embed(self, sentences):
        """As `encode`, with the graph."""
        tokens = tokenize(list(sentences), self.tokenizer, 64)
        ids, offsets = torch.from_numpy(tokens.ids.astype(np.int64)), torch.from_numpy(tokens.offsets[:-1])
        return F.embedding_bag(ids, self.vectors, offsets, mode="sum")

    def tune(self, data, seed):
        """Train the vectors further: CoSENT on KorSTS train and KLUE-STS train (0.5), contrastive on pairs (0.5).

        Returns:
            The encoder itself.
        """
        generator = np.random.default_rng(seed)
        pairs = np.array(read_pairs(data / "pairs.tsv"))
        graded = []
        for name, weight in (("korsts_train.tsv", 1.0), ("klue_sts_train.tsv", 0.5)):
            sts = read_sts([data / name])
            graded.append((weight, np.array([sts.sentences1, sts.sentences2]).T, torch.from_numpy(sts.scores)))
        optimizer = torch.optim.Adam([self.vectors], lr=LR)
        for step in trange(STEPS, disable=None, desc="word vectors"):
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


@one_sentence_errors
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--start", required=True)
    parser.add_argument("--seed", type=flags.seed, default=1)
    parser.add_argument("--output", type=Path, required=True, help="folder")
    args = parser.parse_args(argv)
    StaticEncoder.untuned(args.start, args.data).tune(args.data, args.seed).save(args.output)


if __name__ == "__main__":
    main()
