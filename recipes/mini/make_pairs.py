"""Sentence pairs scored by teachers: more graded data than people have labelled.

    python -m recipes.mini.make_pairs DATA --start START --teachers RUN... --output DATA/scored_pairs.tsv

DATA and START are from make_data and make_start, a teacher is a run folder. Each sentence is paired with some that the
teachers find near it and some at random; the score is 5 times the teachers' mean cosine, or 0 where that is negative;
tuned word vectors count 0.3. Thakur et al. 2021, Augmented SBERT (arXiv:2010.08240), with bi-encoders as teachers.
"""

import argparse
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from data.errors import one_sentence_errors
from data.files import write_atomically
from data.sentences import read_sentences
from data.sts import read_sts
from model.checkpoint import load_encoder
from recipes.mini.make_data import key
from recipes.mini.static import StaticEncoder

STATIC_WEIGHT = 0.3  # chosen on KorSTS dev from 0.2, 0.3 and 0.4
NEAREST = 60  # partners are drawn from so many, the nearer the likelier
RANDOM_SHARE = 0.3  # of the sentences also get a partner at random
OTHERS = 60_000  # of the sentences without labels


def read_pools(data):
    """[(sentences, partners of each)]; a partner is from the same pool. No sentence is one that mini is measured on."""
    unlabelled = read_sentences(data / "sentences.txt")
    allowed = {key(sentence) for sentence in unlabelled}  # KorSTS train has sentences of KorSTS dev and test
    pools = []
    for name, partners in (("korsts_train.tsv", 6), ("klue_sts_train.tsv", 2)):
        sts = read_sts([data / name])
        sentences = sorted({*sts.sentences1, *sts.sentences2})
        pools.append(([sentence for sentence in sentences if key(sentence) in allowed], partners))
    others = [sentence for sentence in unlabelled if 8 <= len(sentence) <= 90]
    random.Random(0).shuffle(others)
    return [*pools, (others[:OTHERS], 1)]


def pair(vectors, partners, generator):
    """Sorted distinct (i, j), i < j, of n sentences: by their (n, d) vectors' products up to `partners` of each."""
    pairs, reach = set(), min(NEAREST, len(vectors) - 1)
    for start in tqdm(range(0, len(vectors), 2000), disable=None, desc="pairs"):
        similarities = vectors[start : start + 2000] @ vectors.T
        similarities.diagonal(start).fill_(-2)  # itself
        for i, nearest in enumerate(similarities.topk(reach).indices.tolist(), start):
            ranks = {int(reach**draw) - 1 for draw in generator.random(partners)}
            found = [nearest[rank] for rank in ranks]
            if generator.random() < RANDOM_SHARE:
                found.append(int(generator.integers(len(vectors))))
            pairs |= {(min(i, j), max(i, j)) for j in found if i != j}
    return sorted(pairs)


@one_sentence_errors
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--start", required=True)
    parser.add_argument("--teachers", nargs="+", required=True, metavar="RUN")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(argv)
    teachers = [((1 - STATIC_WEIGHT) / len(args.teachers), load_encoder(run)) for run in args.teachers]
    teachers.append((STATIC_WEIGHT, StaticEncoder(args.start, args.data).tune(seed=1)))
    generator = np.random.default_rng(0)
    with write_atomically(args.output) as file:
        for sentences, partners in read_pools(args.data):
            # products of these are the teachers' weighted mean cosines
            vectors = [weight**0.5 * F.normalize(teacher.encode(sentences), dim=1) for weight, teacher in teachers]
            vectors = torch.cat(vectors, 1)
            for i, j in pair(vectors, partners, generator):
                score = 5 * float((vectors[i] @ vectors[j]).clamp(0, 1))
                file.write(f"{sentences[i]}\t{sentences[j]}\t{score:.4f}\n".encode())


if __name__ == "__main__":
    main()
