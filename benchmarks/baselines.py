"""Encoders beside what overlap of words and static vectors reach: similarity of pairs, retrieval of paraphrases.

    python -m benchmarks.baselines --idf_data KorSTS/sts-train.tsv --test_data KorSTS/sts-dev.tsv KorSTS/sts-test.tsv
    python -m benchmarks.baselines ... --groups DATA/retrieval.tsv --static START DATA --model mini

STS files: cosine Spearman x100. Groups (a file of group, sentence): every sentence asks for the others of its group
among all sentences of the file; P@1 is how often the nearest is one, MAP the mean average precision, x100.
--static tunes word vectors alone (START from recipes.mini.make_start, DATA from recipes.mini.make_data), one training a
seed. Needs scikit-learn (requirements-extra.txt).
"""

import argparse
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize

from data import flags
from data.errors import UserError, one_sentence_errors
from data.files import require_files
from data.sentences import read_pairs
from data.sts import read_sts
from model.checkpoint import load_encoder
from recipes.mini.static import StaticEncoder


def tfidf(corpus, **how):
    """A callable: sentences to sparse (n, features) TF-IDF vectors, idf from `corpus`."""
    return TfidfVectorizer(**how).fit(corpus).transform


def similarity(encode, file):
    """Cosine Spearman x100 of an STS file."""
    pairs = read_sts([file])
    a, b = (normalize(encode(list(sentences))) for sentences in (pairs.sentences1, pairs.sentences2))
    products = a * b if isinstance(a, np.ndarray) else a.multiply(b)
    return 100 * spearmanr(np.asarray(products.sum(axis=1)).ravel(), pairs.scores).statistic


def retrieval(encode, file):
    """(P@1, MAP) x100 of a file of groups."""
    groups, sentences = zip(*read_pairs(file))
    embeddings = normalize(encode(list(sentences)))
    cosines = embeddings @ embeddings.T
    cosines = cosines if isinstance(cosines, np.ndarray) else cosines.toarray()
    np.fill_diagonal(cosines, -2)  # the query itself, last
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :-1]
    groups = np.unique(groups, return_inverse=True)[1]
    if (np.bincount(groups) < 2).any():
        raise UserError(f"{file}: a group of one sentence; expected at least two")
    hits = groups[order] == groups[:, None]  # (n, n - 1)
    precisions = hits.cumsum(1) / np.arange(1, hits.shape[1] + 1)
    average = (precisions * hits).sum(1) / hits.sum(1)
    return 100 * hits[:, 0].mean(), 100 * average.mean()


@one_sentence_errors
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--idf_data", nargs="+", required=True, metavar="FILE", help="STS files for the idf weights")
    add("--test_data", nargs="+", required=True, metavar="FILE")
    add("--groups", metavar="FILE", help="group and sentence, tab separated, no header")
    add("--static", nargs=2, type=Path, metavar=("START", "DATA"), help="word vectors, as they are and tuned")
    add("--seeds", nargs="+", type=flags.seed, default=[1, 2, 3], help="of --static")
    add("--model", nargs="+", default=[], help="mini, run folder, .pt, folder or hub id")
    args = parser.parse_args(argv)
    require_files([*args.test_data, *([args.groups] if args.groups else [])])
    encoders = {name: load_encoder(name) for name in args.model}
    corpus = read_sts(args.idf_data)
    corpus = [*corpus.sentences1, *corpus.sentences2]

    def systems():
        yield "TF-IDF of character 1-3-grams", tfidf(corpus, analyzer="char_wb", ngram_range=(1, 3))
        yield "TF-IDF of words", tfidf(corpus, token_pattern=r"\S+")
        if args.static:
            yield "static vectors", StaticEncoder.untuned(*args.static).encode
            for seed in args.seeds:
                tuned = StaticEncoder.untuned(*args.static).tune(args.static[1], seed)
                yield f"static vectors, tuned, seed {seed}", tuned.encode
        for name, encoder in encoders.items():
            yield name, encoder.encode

    columns = [Path(file).name for file in args.test_data] + (["P@1", "MAP"] if args.groups else [])
    print(f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name, encode in systems():
        values = [similarity(encode, file) for file in args.test_data]
        values += retrieval(encode, args.groups) if args.groups else []
        print(f"| {name} | {' | '.join(f'{value:.2f}' for value in values)} |", flush=True)


if __name__ == "__main__":
    main()
