"""STS files into scored sentence pairs, the evaluation data."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.errors import UserError
from data.tables import read_csv, read_json, read_tsv, wrong_columns

KORSTS_HEADER = ["genre", "filename", "year", "id", "score", "sentence1", "sentence2"]
SURROGATE = re.compile("[\ud800-\udfff]")  # JSON's escapes can spell what no encoding can hold


class ScoredPairs(NamedTuple):
    """n sentence pairs and how similar people found them."""

    sentences1: list  # n strings
    sentences2: list  # n strings
    scores: np.ndarray  # (n,) float64, 0 (unrelated) to 5 (same meaning)


def read_sts(paths, encoding="utf-8"):
    """Scored pairs from one or several files, in file order; the kind is told from name and header.

    - KorSTS: 7 tab-separated columns under a header (KORSTS_HEADER)
    - 3 tab-separated columns without header: sentence1, sentence2, score
    - `.json`: KLUE-STS, a list of {"sentence1", "sentence2", "labels": {"real-label": score}}
    - `.csv`: ordinary quoting, a header that holds sentence1, sentence2 and label (KLUE-STS) or score

    Every row is kept: equal sentences, and pairs scored twice, are part of the published sets.

    Raises:
        UserError: a file is unreadable or a row is not a pair with a score in 0..5 (names file and line), or all
            scores are equal.
    """
    pairs = []
    for path in map(Path, paths):
        read_rows = {".json": _klue_json_rows, ".csv": _csv_rows}.get(path.suffix.lower(), _tsv_rows)
        before = len(pairs)
        pairs.extend(_checked(*row) for row in read_rows(path, encoding))
        if len(pairs) == before:
            raise UserError(f"{path}: holds no rows")
    sentences1, sentences2, scores = zip(*pairs)
    if len(set(scores)) < 2:
        files = ", ".join(map(str, paths))
        raise UserError(f"{files}: every score is {scores[0]:g}; a correlation needs at least two different scores")
    return ScoredPairs(list(sentences1), list(sentences2), np.array(scores))


# Each of the readers yields (place, sentence1, sentence2, score), place being "file, line N" for errors.


def _tsv_rows(path, encoding):
    rows = read_tsv(path, encoding)
    first_number, first = next(rows)
    if first == KORSTS_HEADER:
        for number, fields in rows:
            if len(fields) != 7:
                raise wrong_columns(path, number, fields, "7 as in the header")
            yield f"{path}, line {number}", fields[5], fields[6], fields[4]
    else:
        for number, fields in [(first_number, first), *rows]:
            if len(fields) != 3:
                expected = f"3 separated by tabs (sentence1, sentence2, score) or the header {KORSTS_HEADER} in line 1"
                raise wrong_columns(path, number, fields, expected)
            yield f"{path}, line {number}", *fields


def _csv_rows(path, encoding):
    rows = read_csv(path, encoding)
    number, header = next(rows)
    score_name = "score" if "score" in header else "label"
    missing = {"sentence1", "sentence2", score_name} - set(header)
    if missing:
        raise UserError(f"{path}, line {number}: expected a header with sentence1, sentence2 and label, found {header}")
    columns = [header.index(name) for name in ("sentence1", "sentence2", score_name)]
    for number, fields in rows:
        if len(fields) != len(header):
            raise wrong_columns(path, number, fields, f"{len(header)} as in the header")
        yield f"{path}, line {number}", *(fields[column] for column in columns)


def _klue_json_rows(path, encoding):
    entries = read_json(path, encoding)
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries], start=1):
        try:
            yield f"{path}, entry {number}", entry["sentence1"], entry["sentence2"], entry["labels"]["real-label"]
        except (KeyError, TypeError):
            expected = '{"sentence1": ..., "sentence2": ..., "labels": {"real-label": ...}}'
            raise UserError(f"{path}, entry {number}: expected a list of {expected} (KLUE-STS)") from None


def _checked(place, sentence1, sentence2, score):
    """One pair with its score as a number, or a UserError that names `place`."""
    try:
        number = float(score)
    except (TypeError, ValueError):
        header = "; of headers only KorSTS's is known, remove the line" if place.endswith("line 1") else ""
        raise UserError(f"{place}: score {score!r} is not a number; expected 0 to 5{header}") from None
    if not 0 <= number <= 5:  # also false for nan
        raise UserError(f"{place}: score {score} is outside 0..5; rescale the scores to 0..5")
    if not isinstance(sentence1, str) or not isinstance(sentence2, str):
        raise UserError(f"{place}: a sentence is not text ({sentence1!r}, {sentence2!r})")
    if SURROGATE.search(sentence1 + sentence2):
        raise UserError(f"{place}: half a character (a lone surrogate) in a sentence; save the file again")
    if not sentence1.strip() or not sentence2.strip():
        raise UserError(f"{place}: a sentence is empty; write one or remove the row")
    return sentence1.strip(), sentence2.strip(), number
