"""The training data of one or several objectives, as numbers of the distinct sentences of them all."""

from typing import NamedTuple

import numpy as np

from data.errors import UserError
from data.nli import Corpus, read_triplets
from data.sentences import read_pairs, read_sentences
from data.sts import scored_rows


class Examples(NamedTuple):
    """N examples of k sentences each."""

    rows: np.ndarray  # (N, k) int64 numbers of sentences
    labels: np.ndarray | None  # (N,): scores 0 to 5 (float64), or 0, 1, 2 as in data.nli.LABELS (int64)


def read_examples(kind, files, index, dropped, encoding="utf-8", columns=None, pairing="one", negatives=1, seed=1234):
    """`Examples` from files of one kind.

    Args:
        kind: one of KINDS.
        files: paths, read as one corpus.
        index: {sentence: its number}; sentences that are new go into it.
        dropped: a `Dropped`; encoding, columns: see data.tables.Table.
        pairing, negatives, seed: of triplets, see data.nli.read_triplets; 0 negatives leave the contradictions out.

    Raises:
        UserError: a file is unreadable or of another kind, a row is bad (unless skipped), or nothing is left.
    """
    labels = None
    if kind == "triplets":
        sentences, rows = read_triplets(files, pairing, seed, encoding, columns, dropped, max(1, negatives))
        number = np.array([index.setdefault(sentence, len(index)) for sentence in sentences])
        rows = number[rows[:, : 2 + negatives]]
    elif kind == "labelled pairs":
        corpus = Corpus(index)
        for file in files:
            corpus.add(file, encoding, columns, dropped)
            if len(corpus.triplets):
                raise UserError(f"{file}: holds triplets; expected NLI rows (premise, hypothesis, label)")
        rows, labels = corpus.nli[:, :2], corpus.nli[:, 2]
    else:
        records = []
        for file in files:
            if kind == "sentences":
                records += [(sentence,) for sentence in read_sentences(file, encoding, columns, dropped)]
            elif kind == "pairs":
                records += read_pairs(file, encoding, columns, dropped)
            else:
                records += scored_rows(file, encoding, columns, dropped)
        if kind == "scored pairs":
            labels = np.array([score for *_, score in records], dtype=np.float64)
            records = [pair for *pair, _ in records]
        rows = np.array([[index.setdefault(s, len(index)) for s in record] for record in records], dtype=np.int64)
    if not len(rows):
        raise UserError(f"{', '.join(map(str, files))}: no usable row; dropped {dropped}")
    return Examples(rows, labels)


KINDS = {
    "triplets": "triplets (anchor, positive, negative) or NLI rows (premise, hypothesis, label)",
    "labelled pairs": "NLI rows (premise, hypothesis, label)",
    "scored pairs": "scored pairs (sentence1, sentence2, score 0 to 5)",
    "pairs": "pairs (sentence1, sentence2)",
    "sentences": "plain sentences, one a line",
}
