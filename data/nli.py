"""NLI files into triplets (premise, entailment, contradiction), the training data of supervised SimCSE."""

import random
import re

import numpy as np

from data.errors import UserError
from data.tables import read_tsv, wrong_columns

KORNLI_HEADER = ["sentence1", "sentence2", "gold_label"]
LABELS = ("entailment", "neutral", "contradiction")
PAIRINGS = ("one", "all")
HEADER_WORDS = set(
    "anchor positive negative premise hypothesis entailment contradiction sentence1 sentence2 gold_label label "
    "sent0 sent1 hard_neg".split()
)
SCORE = re.compile(r"\d(\.\d+)?")


class Dropped:
    """How many rows were left out, by reason, with the place of the first of each."""

    def __init__(self):
        self.counts = {}  # reason -> number of rows
        self.first = {}  # reason -> "file, line N"

    def add(self, reason, path, line):
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.first.setdefault(reason, f"{path}, line {line}")

    def __str__(self):
        return "; ".join(f"{count:,} {reason} (first: {self.first[reason]})" for reason, count in self.counts.items())


def read_triplets(paths, pairing="one", seed=1234, encoding="utf-8"):
    """Triplets from KorNLI files (3 columns under a header) and triplet files (3 columns, no header).

    Rows with `n/a` for a sentence and rows that repeat the premise are dropped and counted. So are
    malformed and empty rows of KorNLI, a translated corpus with known debris; a triplet file is
    somebody's own, and there such a row is an error.

    Args:
        paths: files of either kind, read as one corpus: a premise is paired over all KorNLI files.
        pairing: "one" draws one entailment and one contradiction for every distinct premise that has
            both, as SimCSE does (Gao et al. 2021, arXiv:2104.08821, section 4.1); "all" takes every
            distinct entailment x contradiction. Triplet files are taken as they are.
        seed: of the draw; the same files, pairing and seed give the same triplets in the same order.
        encoding: of the files.

    Returns:
        (triplets, dropped): a list of (premise, entailment, contradiction) strings, and a `Dropped`.

    Raises:
        UserError: a file is unreadable or of neither kind, a row of a triplet file is malformed, or no
            triplet is left.
    """
    triplets = []
    dropped = Dropped()
    hypotheses = {}  # premise -> ([entailments], [contradictions]), in order of appearance
    for path in paths:
        rows = read_tsv(path, encoding)
        number, first = next(rows)
        if first == KORNLI_HEADER:
            _collect_hypotheses(path, rows, hypotheses, dropped)
        else:
            triplets.extend(_triplet_rows(path, [(number, first), *rows], dropped))
    draw = random.Random(seed)
    for premise, (entailments, contradictions) in hypotheses.items():
        if pairing == "all":
            # SNLI repeats hypotheses under one premise: distinct triplets only
            triplets.extend((premise, e, c) for e in dict.fromkeys(entailments) for c in dict.fromkeys(contradictions))
        elif entailments and contradictions:
            triplets.append((premise, draw.choice(entailments), draw.choice(contradictions)))
    if not triplets:
        raise UserError(
            f"{', '.join(map(str, paths))}: no premise with both an entailment and a contradiction"
            + (f"; dropped {dropped}" if dropped.counts else "")
        )
    return triplets, dropped


def _collect_hypotheses(path, rows, hypotheses, dropped):
    """Add KorNLI's rows to `hypotheses`, grouped by premise."""
    for number, fields in rows:
        if len(fields) != 3 or fields[2] not in LABELS:
            dropped.add("malformed", path, number)
        elif not (reason := _unusable(fields[0], fields[1])):
            entailments, contradictions = hypotheses.setdefault(fields[0], ([], []))
            if fields[2] == "entailment":
                entailments.append(fields[1])
            elif fields[2] == "contradiction":
                contradictions.append(fields[1])
        else:
            dropped.add(reason, path, number)


def _triplet_rows(path, rows, dropped):
    """The usable rows of a triplet file."""
    for number, fields in rows:
        if len(fields) != 3:
            expected = f"3 separated by tabs (anchor, positive, negative) or the header {KORNLI_HEADER} in line 1"
            raise wrong_columns(path, number, fields, expected)
        premise, entailment, contradiction = fields
        if number == 1 and all(field.lower() in HEADER_WORDS for field in fields):
            raise UserError(
                f"{path}, line 1: a header; remove the line, or for NLI rows make it {' '.join(KORNLI_HEADER)}"
            )
        if contradiction in LABELS:
            raise UserError(
                f"{path}, line {number}: a label where a sentence should be; line 1 of NLI rows must be {KORNLI_HEADER}"
            )
        if SCORE.fullmatch(contradiction):
            raise UserError(
                f"{path}, line {number}: {contradiction!r} where a sentence should be; training takes triplets, or NLI "
                f"rows with the labels {', '.join(LABELS)} in words"
            )
        reason = _unusable(premise, entailment) or _unusable(premise, contradiction)
        if not reason and entailment == contradiction:
            reason = "positive equal to negative"
        if reason == "empty":
            raise UserError(f"{path}, line {number}: a sentence is empty; expected anchor, positive and negative")
        if reason:
            dropped.add(reason, path, number)
        else:
            yield premise, entailment, contradiction


def _unusable(premise, hypothesis):
    """Why this pair of sentences cannot be used, or None."""
    if not premise or not hypothesis:
        return "empty"
    if premise.lower() == "n/a" or hypothesis.lower() == "n/a":
        return "n/a"
    if premise == hypothesis:
        return "hypothesis equal to its premise"
    return None


def index_sentences(triplets):
    """Triplets as indices of their distinct sentences, so that each sentence is tokenised once.

    Returns:
        (sentences, examples): a list of distinct strings in order of appearance, and an (N, 3) int64 array.
    """
    index = {}
    examples = [[index.setdefault(sentence, len(index)) for sentence in triplet] for triplet in triplets]
    return list(index), np.array(examples)
