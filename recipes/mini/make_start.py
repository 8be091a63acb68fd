"""mini before its first training step: a BERT whose word embeddings are static vectors of its pieces, the rest random.

    python -m recipes.mini.make_start DATA/sentences.txt --output START

Its teachers begin in the same way, with more layers (--layers, --hidden) and pieces of their own (--tokenizer).
A piece's vector is its row of the first singular directions of the pieces' positive pointwise mutual information
(Levy, Goldberg and Dagan 2015, Improving Distributional Similarity with Lessons Learned from Word Embeddings, sections
2 and 3; contexts smoothed by 0.75, singular values to the power 0.5). Needs scikit-learn (requirements-extra.txt).
"""

import argparse
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
from sklearn.utils.extmath import randomized_svd
from transformers import AutoConfig, AutoModel

from data import flags
from data.errors import one_sentence_errors
from data.sentences import read_sentences
from data.tokenize import load_tokenizer, tokenize
from model.checkpoint import MINI

WINDOW = 8  # pieces on each side; a context at distance d counts d^-0.5
FIRST = 5  # id of the first piece that is no special token
RARE = 5  # a piece seen less often keeps its random vector


def cooccurrence(tokens, vocabulary):
    """(vocabulary, vocabulary) sparse counts of pieces near each other in a sentence, symmetric.

    Args:
        tokens: packed sentences.
        vocabulary: number of pieces; the first FIRST are special and count as nobody's neighbours.
    """
    ids = tokens.ids.astype(np.int64)
    sentence = np.repeat(np.arange(len(tokens.lengths)), tokens.lengths)
    counts = scipy.sparse.csr_matrix((vocabulary, vocabulary))
    for distance in range(1, WINDOW + 1):
        left, right = ids[:-distance], ids[distance:]
        near = (sentence[:-distance] == sentence[distance:]) & (left >= FIRST) & (right >= FIRST)
        values = np.full(near.sum(), distance**-0.5)
        found = scipy.sparse.coo_matrix((values, (left[near], right[near])), shape=counts.shape).tocsr()
        counts = counts + found + found.T
    return counts


def positive_pmi(counts, smoothing=0.75):
    """max(0, log(p(a, b) / (p(a) p'(b)))) of a matrix of counts, p' proportional to p ** smoothing; sparse."""
    total = np.asarray(counts.sum(1)).ravel()
    context = total**smoothing / (total**smoothing).sum()
    counts = counts.tocoo()
    values = np.log(counts.data / (total[counts.row] * context[counts.col]))
    kept = values > 0
    return scipy.sparse.coo_matrix((values[kept], (counts.row[kept], counts.col[kept])), shape=counts.shape).tocsr()


def static_vectors(matrix, dim):
    """(vocabulary, dim) vectors of a sparse matrix's rows."""
    u, s, _ = randomized_svd(matrix, dim, n_oversamples=13, n_iter=4, random_state=0)
    return u * s**0.5


@one_sentence_errors
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sentences", type=Path, help="text, a sentence a line")
    parser.add_argument("--output", type=Path, required=True, help="folder for the model")
    parser.add_argument("--tokenizer", default=MINI, help="folder, from make_vocabulary (default: mini's)")
    parser.add_argument("--layers", type=flags.positive_int, default=4)
    heads_of_64 = flags.checked(int, lambda size: size > 0 and size % 64 == 0, "a multiple of 64")
    parser.add_argument("--hidden", type=heads_of_64, default=256, help="dimensions; heads have 64 each")
    args = parser.parse_args(argv)
    tokenizer = load_tokenizer(args.tokenizer)
    tokens = tokenize(read_sentences(args.sentences), tokenizer, 128)
    torch.manual_seed(0)
    size = {"num_hidden_layers": args.layers, "hidden_size": args.hidden, "intermediate_size": 4 * args.hidden}
    size |= {"num_attention_heads": args.hidden // 64, "vocab_size": len(tokenizer)}
    config = AutoConfig.from_pretrained(MINI, **size)
    backbone = AutoModel.from_config(config, add_pooling_layer=False, dtype=torch.float32)
    embeddings = backbone.get_input_embeddings().weight.data
    vectors = static_vectors(positive_pmi(cooccurrence(tokens, len(tokenizer))), embeddings.shape[1])
    known = np.bincount(tokens.ids, minlength=len(tokenizer)) >= RARE
    known[tokenizer.all_special_ids] = False
    vectors = torch.from_numpy(vectors[known]).float()
    embeddings[torch.from_numpy(known)] = vectors / vectors.norm(dim=1).mean()
    backbone.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)


if __name__ == "__main__":
    main()
