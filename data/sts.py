"""STS files into scored sentence pairs, the evaluation data."""

from typing import NamedTuple

import numpy as np

from data.dropped import Dropped
from data.errors import UserError
from data.tables import EMPTY, Layout, Table


class ScoredPairs(NamedTuple):
    """n sentence pairs and how similar people found them."""

    sentences1: list  # n strings
    sentences2: list  # n strings
    scores: np.ndarray  # (n,) float64, 0 (unrelated) to 5 (same meaning)


def _number(score):
    """The score as a number, or None."""
    try:
        return float(score)
    except (TypeError, ValueError, OverflowError):
        return None


def _check(values):
    sentence1, sentence2, score = values
    value = _number(score)
    if value is None:
        advice = "if this line is a header, name its columns with --columns"
        return "score is not a number", f"score {str(score)[:40]!r} is not a number; expected 0 to 5; {advice}"
    if not 0 <= value <= 5:  # also nan
        return "score outside 0..5", f"score {str(score)[:40]} is outside 0..5; rescale the scores to 0..5"
    return None if sentence1 and sentence2 else EMPTY


SCORED = Layout(
    (("sentence1", "text1"), ("sentence2", "text2"), ("score", "labels.real-label", "label")),
    numbers=(2,),
    check=_check,
)


def read_sts(paths, encoding="utf-8", columns=None, dropped=None):
    """Scored pairs from one or several files, in file order.

    The columns are told by their names (KorSTS's seven, KLUE-STS as .json or .csv, a user's own); a .tsv with
    three columns needs no header. Every row is kept: equal sentences, and pairs scored twice, are part of the
    published sets.

    Args:
        encoding, columns, dropped: see `Table`.

    Raises:
        UserError: a file is unreadable, a row is not a pair with a score in 0..5 (unless skipped), or all scores are
            equal.
    """
    dropped = Dropped() if dropped is None else dropped
    pairs = []
    for path in paths:
        pairs.extend(scored_rows(path, encoding, columns, dropped))
    if not pairs:
        raise UserError(f"{', '.join(map(str, paths))}: no usable row; dropped {dropped}")
    sentences1, sentences2, scores = zip(*pairs)
    if len(set(scores)) < 2:
        files = ", ".join(map(str, paths))
        raise UserError(f"{files}: every score is {scores[0]:g}; a correlation needs at least two different scores")
    return ScoredPairs(list(sentences1), list(sentences2), np.array(scores))


def scored_rows(path, encoding, columns, dropped):
    """Yield (sentence1, sentence2, score) for the rows of one file; see `read_sts`."""
    for sentence1, sentence2, score in Table(path, {"scored pairs": SCORED}, encoding, columns, dropped).rows():
        yield sentence1, sentence2, float(score)
