"""NLI files into triplets (premise, entailment, contradiction), the training data of supervised SimCSE."""

import re
from array import array
from typing import NamedTuple

import numpy as np

from data.dropped import Dropped
from data.errors import UserError
from data.tables import EMPTY, Layout, Table

KORNLI_HEADER = ["sentence1", "sentence2", "gold_label"]
LABELS = {"entailment": 0, "neutral": 1, "contradiction": 2}
ENTAILMENT, CONTRADICTION = LABELS["entailment"], LABELS["contradiction"]
PAIRINGS = ("one", "all")
SCORE = re.compile(r"\d(\.\d+)?")


def _check_pair(premise, hypothesis):
    if not premise or not hypothesis:
        return EMPTY
    if premise == hypothesis:
        return "hypothesis equal to its premise", None
    if (len(premise) == 3 and premise.lower() == "n/a") or (len(hypothesis) == 3 and hypothesis.lower() == "n/a"):
        return "n/a", None
    return None


def _check_nli(values):
    premise, hypothesis, label = values
    if found := _check_pair(premise, hypothesis):
        return found
    if label not in LABELS:
        return "unknown label", f"label {label[:40]!r}, expected one of {', '.join(LABELS)} in words"
    return None


def _check_triplet(values):
    anchor, positive, negative = values
    if found := _check_pair(anchor, positive) or _check_pair(anchor, negative):
        return found
    if positive == negative:
        return "positive equal to negative", None
    if negative in LABELS or SCORE.fullmatch(negative):
        message = (
            f"{negative!r} where a sentence should be; a file holds triplets, or NLI rows with the labels "
            f"{', '.join(LABELS)} in words"
        )
        return "label or number for a sentence", message
    return None


NLI = Layout(
    (("premise", "sentence1"), ("hypothesis", "sentence2"), ("gold_label", "label")),
    check=_check_nli,
)
TRIPLETS = Layout(
    (
        ("anchor", "premise", "sent0", "query", "sentence1"),
        ("positive", "entailment", "sent1", "pos"),
        ("negative", "contradiction", "hard_neg", "neg"),
    ),
    check=_check_triplet,
)


class Triplets(NamedTuple):
    """N triplets as indices of their distinct sentences, so that each sentence is tokenised once."""

    sentences: list  # of distinct strings, in order of appearance
    examples: np.ndarray  # (N, 3 or more) int64: premise (anchor), entailment (positive), contradictions (negatives)


def read_triplets(paths, pairing="one", seed=1234, encoding="utf-8", columns=None, dropped=None, negatives=1):
    """Triplets from NLI files (premise, hypothesis, label) and triplet files (anchor, positive, negative).

    Args:
        paths: files of either kind, read as one corpus: a premise is paired over all NLI files.
        pairing: "one" draws one entailment and one contradiction for every distinct premise that has
            both, as SimCSE does (Gao et al. 2021, arXiv:2104.08821, section 4.1); "all" takes every
            distinct entailment x contradiction. Triplet files are taken as they are.
        seed: of the draw; the same files, pairing and seed give the same triplets in the same order.
        encoding, columns, dropped: see `Table`.
        negatives: contradictions of an example; where a premise has fewer, they repeat.

    Returns:
        `Triplets`: those of the triplet files in file order, then one premise after the other.

    Raises:
        UserError: a file is unreadable or of neither kind, a row is bad (unless skipped), no triplet is left, or
            more than one negative is asked of triplet files alone.
    """
    dropped = Dropped() if dropped is None else dropped
    corpus = Corpus()
    for path in paths:
        corpus.add(path, encoding, columns, dropped)
    if negatives > 1 and not len(corpus.nli):
        raise UserError(f"--negatives {negatives}: triplet files have one a row; give NLI rows, or leave the flag out")
    examples, same = corpus.pair(pairing, seed, negatives)
    sentences = list(corpus.index)
    for row in same:
        where = " and ".join(map(str, paths))  # rows of several files may have met here
        dropped.add(where, None, [sentences[i] for i in row], "positive equal to negative")
    if not len(examples):
        raise UserError(
            f"{', '.join(map(str, paths))}: no premise with both an entailment and a contradiction"
            + (f"; dropped {dropped}" if dropped.counts else "")
        )
    used, numbers = np.unique(examples, return_inverse=True)
    return Triplets([sentences[i] for i in used.tolist()], numbers.reshape(examples.shape))


class Corpus:
    """The usable rows of any number of NLI and triplet files, as numbers of their sentences.

    Attributes:
        index: {sentence: its number}, in order of appearance; one that is given goes on being filled.
    """

    def __init__(self, index=None):
        self.index = {} if index is None else index
        self._triplets = array("q")  # flat: anchor, positive, negative
        self._nli = array("q")  # flat: premise, hypothesis, label

    @property
    def triplets(self):
        """The rows of triplet files, (n, 3) int64."""
        return np.array(self._triplets, dtype=np.int64).reshape(-1, 3)

    @property
    def nli(self):
        """The rows of NLI files, (n, 3) int64: premise, hypothesis, label as in LABELS."""
        return np.array(self._nli, dtype=np.int64).reshape(-1, 3)

    def add(self, path, encoding="utf-8", columns=None, dropped=None):
        """Read a file.

        Rows with `n/a` for a sentence and rows that repeat the premise say nothing: dropped and counted. So are
        malformed and empty rows of KorNLI, a translated corpus with known debris, told by its header; elsewhere
        they are bad rows.

        Raises:
            UserError: the file is unreadable or of neither kind, or a row is bad (unless skipped).
        """
        table, index = Table(path, {"nli": NLI, "triplets": TRIPLETS}, encoding, columns, dropped), self.index
        rows = self._nli if table.kind == "nli" else self._triplets
        for first, second, third in table.rows(lenient=table.header == KORNLI_HEADER):
            rows.append(index.setdefault(first, len(index)))
            rows.append(index.setdefault(second, len(index)))
            rows.append(LABELS[third] if rows is self._nli else index.setdefault(third, len(index)))

    def pair(self, pairing="one", seed=1234, negatives=1):
        """The corpus as triplets; see `read_triplets`.

        Returns:
            (triplets, same): (N, 2 + negatives) and (M, 3) int64 numbers of sentences. `same` are those of a premise
            with one hypothesis under both labels, drawn for both: they teach nothing.
        """
        premises, hypotheses, labels = self.nli.T
        groups = []  # for entailment and contradiction: hypotheses grouped by premise, first of each group, how many
        for label in (ENTAILMENT, CONTRADICTION):
            rows = np.flatnonzero(labels == label)
            if pairing == "all":  # SNLI repeats hypotheses under one premise: distinct triplets only
                _, distinct = np.unique(premises[rows] * len(self.index) + hypotheses[rows], return_index=True)
                rows = rows[np.sort(distinct)]
            grouped = rows[np.argsort(premises[rows], kind="stable")]
            count = np.bincount(premises[rows], minlength=len(self.index))
            groups.append((hypotheses[grouped], np.cumsum(count) - count, count))
        (entailments, first_e, count_e), (contradictions, first_c, count_c) = groups
        premise = np.flatnonzero((count_e > 0) & (count_c > 0))
        if pairing == "all":
            combinations = count_e[premise] * count_c[premise]
            premise = np.repeat(premise, combinations)
            k = np.arange(len(premise)) - np.repeat(np.cumsum(combinations) - combinations, combinations)
            e, c = np.divmod(k, count_c[premise])
        else:
            draw = np.random.default_rng(seed)
            e, c = draw.integers(count_e[premise]), draw.integers(count_c[premise])
        paired = np.stack([premise, entailments[first_e[premise] + e], contradictions[first_c[premise] + c]], axis=1)
        same = paired[:, 1] == paired[:, 2]
        triplets = np.concatenate([self.triplets, paired[~same]])
        more = []
        for k in range(1, negatives):  # the next contradictions of the premise, round and round
            other = contradictions[first_c[premise] + (c + k) % count_c[premise]]
            other = np.where(other == paired[:, 1], paired[:, 2], other)
            more.append(np.concatenate([self.triplets[:, 2], other[~same]])[:, None])
        return np.concatenate([triplets, *more], axis=1), paired[same]
