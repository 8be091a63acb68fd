"""Files mutated at random: every one ends in the right rows or in one sentence with file and line."""

import csv
import gzip
import io
import json
import os
import random
import re
import unicodedata

import pytest

from data.dropped import Dropped
from data.errors import UserError
from data.files import LONGEST
from data.nli import KORNLI_HEADER, LABELS, Corpus
from data.sentences import read_pairs, read_sentences
from data.sts import read_sts
from tests.conftest import SAMPLE, SHARED

INPUTS = int(os.environ.get("KOSIMCSE_FUZZ", 12_000))
ROWS = 12  # of a file before mutation
KORSTS_HEADER = ["genre", "filename", "year", "id", "score", "sentence1", "sentence2"]
# whole-file failures have no line; everything else must name one
WHOLE_FILE = re.compile(
    r"Excel workbook|the file is empty|holds no rows|no usable row|every score is|gzip|UTF-16|not utf-16|Parquet"
)
PLACE = re.compile(r", (line|entry|row|after row) \d+: ")


def real_rows():
    """(NLI rows, STS rows) to mutate: the real data where it is there, else our sample."""
    if (SHARED / "korean").is_dir():
        folder = SHARED / "korean" / "KorNLU"
        nli = (folder / "KorNLI" / "xnli.dev.ko.tsv").read_text(encoding="utf-8")
        sts = (folder / "KorSTS" / "sts-train.tsv").read_text(encoding="utf-8")
        return [[line.split("\t") for line in text.rstrip("\n").split("\n")[1:]] for text in (nli, sts)]
    lines = (SAMPLE / "train_nli.tsv").read_text(encoding="utf-8").splitlines()
    triplets = [line.split("\t") for line in lines]
    nli = [row for p, e, c in triplets for row in ([p, e, "entailment"], [p, c, "contradiction"])]
    scored = (SAMPLE / "valid_sts.tsv").read_text(encoding="utf-8").splitlines()
    return nli, [["genre", "file", "2012", "1", s, a, b] for a, b, s in (line.split("\t") for line in scored)]


# The mutations: bytes in, bytes out.


def flip_bytes(draw, content):
    content = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 8])):
        if content:
            content[draw.randrange(len(content))] = draw.randrange(256)
    return bytes(content)


def insert(*pieces):
    def mutate(draw, content):
        at = draw.randrange(len(content) + 1)
        return content[:at] + draw.choice(pieces) + content[at:]

    return mutate


def cut(draw, content):
    a, b = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    return draw.choice([content[:a], content[:a] + content[min(b, a + 40) :], content[a:]])


def change_columns(draw, content):
    lines = content.split(b"\n")
    i = draw.randrange(len(lines))
    fields = lines[i].split(b"\t")
    if draw.random() < 0.5:
        fields.pop(draw.randrange(len(fields)))
    else:
        fields.insert(
            draw.randrange(len(fields) + 1), draw.choice([b"", b"\xea\xb0\x80", b"entailment", b"3.5", b"n/a"])
        )
    lines[i] = b"\t".join(fields)
    return b"\n".join(lines)


def shuffle_lines(draw, content):
    lines = content.split(b"\n")
    draw.shuffle(lines)
    return b"\n".join(lines)


def double_line(draw, content):
    lines = content.split(b"\n")
    lines.insert(draw.randrange(len(lines)), draw.choice(lines))
    return b"\n".join(lines)


MUTATIONS = [
    flip_bytes,
    insert(b"\t", b"\t\t", b"\n", b"\r", b"\r\n", b"\n\n"),
    insert(b'"', b"'", b'""', b',"', b"\\", b","),
    insert(b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\x1f\x8b", b"PK\x03\x04", b"\xe2\x80\xa8", b"\x85"),
    insert(b"n/a", b"entailment", b"9", b"nan", b"1e999", "\u1112\u1161\u11ab".encode()),
    cut,
    change_columns,
    shuffle_lines,
    double_line,
    lambda draw, content: content.replace(b"\n", draw.choice([b"\r\n", b"\r", b"\n\n"])),
    lambda draw, content: draw.choice([b"", b"\n", b"\0" * 50, b"\xef\xbb\xbf", content * 2]),
]


# The readers once more, slow and obvious: rows of one file, None for a line that is no row.


def slow_lines(content):
    """The file's lines as text, None where a line is not text; blank lines at the end are not lines."""
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    texts = []
    for line in lines:
        try:
            text = unicodedata.normalize("NFC", line.decode("utf-8"))
            texts.append(None if "\0" in text or len(text) > LONGEST else text)
        except UnicodeDecodeError:
            texts.append(None)
    while texts and texts[-1] is not None and not texts[-1].strip():
        texts.pop()
    return texts


def one_line(text):
    return " ".join(re.split(r"[\t\r\n]+", text)).strip()


def slow_csv_row(text):
    """RFC 4180, a row a line: a small automaton; None where a quotation mark is out of place."""
    fields, field, state = [], "", "start"
    for character in text.removesuffix("\r") + ",":
        if state == "quoted":
            state = "quote" if character == '"' else "quoted"
            field += "" if character == '"' else character
        elif character == '"' and state in ("start", "quote"):
            field += '"' if state == "quote" else ""
            state = "quoted"
        elif character == ",":
            fields.append(one_line(field))
            field, state = "", "start"
        elif character == '"' or state == "quote":
            return None
        else:
            field, state = field + character, "plain"
    return fields if state == "start" and not field else None


def slow_table(content, split, columns):
    """The wanted columns of each good line: by name if the first line that is text has them, else the first three."""
    rows = [None if text is None else split(text) for text in slow_lines(content)]
    rows = [row and [field.strip() for field in row] for row in rows]

    def is_header(row):
        return all(any(name in map(str.lower, row) for name in names) for names in columns)

    while rows and (rows[0] is None or len(rows[0]) != 3 and not is_header(rows[0])):
        rows.pop(0)
    if not rows:
        return [], 0
    header = [field.lower() for field in rows[0]]
    picked = [next((name for name in names if name in header), None) for names in columns]
    if None not in picked:
        positions = [header.index(name) for name in picked]
        return [[row[i] for i in positions] for row in rows[1:] if row and len(row) == len(header)], 1
    return [row for row in rows if row and len(row) == 3], 0


def slow_nli(content):
    rows, has_header = slow_table(
        content,
        lambda text: text.split("\t"),
        [("premise", "sentence1"), ("hypothesis", "sentence2"), ("gold_label", "label")],
    )
    usable = [row for row in rows if all(row) and len(set(row)) == 3 and "n/a" not in map(str.lower, row)]
    triplets = [tuple(row) for row in usable if row[2] not in LABELS and not re.fullmatch(r"\d(\.\d+)?", row[2])]
    labelled = [
        (premise, hypothesis, label)
        for premise, hypothesis, label in rows
        if premise and hypothesis and premise != hypothesis and label in LABELS
        if premise.lower() != "n/a" and hypothesis.lower() != "n/a"
    ]
    return triplets if not has_header and len(labelled) < len(triplets) else labelled


def slow_sts(split):
    def read(content):
        rows, _ = slow_table(content, split, [("sentence1", "text1"), ("sentence2", "text2"), ("score", "label")])
        scored = []
        for sentence1, sentence2, score in rows:
            try:
                if sentence1 and sentence2 and 0 <= float(score) <= 5:
                    scored.append((sentence1, sentence2, float(score)))
            except ValueError:
                pass
        return scored

    return read


def slow_pairs(content):
    """Of JSON lines."""
    pairs = []
    for text in slow_lines(content):
        try:
            entry = json.loads(text)
            pair = [unicodedata.normalize("NFC", entry[name]) for name in ("text1", "text2")]
            pair = [one_line(sentence) for sentence in pair]
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if all(pair) and not re.search("[\0\ud800-\udfff]", "".join(pair)):
            pairs.append(tuple(pair))
    return pairs


def slow_sentences(content):
    return [one_line(text) for text in slow_lines(content) if text and text.strip()]


# Ours, in the same form.


def our_nli(path, dropped):
    corpus = Corpus()
    corpus.add(path, dropped=dropped)
    sentences = list(corpus.index)
    names = list(LABELS)
    if len(corpus.triplets):
        return [tuple(sentences[i] for i in row) for row in corpus.triplets]
    return [(sentences[p], sentences[h], names[label]) for p, h, label in corpus.nli]


def our_sts(path, dropped):
    pairs = read_sts([path], dropped=dropped)
    return list(zip(pairs.sentences1, pairs.sentences2, pairs.scores.tolist()))


def our_pairs(path, dropped):
    return read_pairs(path, dropped=dropped)


def our_sentences(path, dropped):
    return read_sentences(path, dropped=dropped)


def to_csv(rows):
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue().encode()


def originals(draw, nli, sts):
    """One small file of each format: (name, content, ours, slow)."""
    a, b = draw.randrange(len(nli) - ROWS), draw.randrange(len(sts) - ROWS)
    nli, sts = nli[a : a + ROWS], sts[b : b + ROWS]
    tsv = "\n".join("\t".join(row) for row in [KORNLI_HEADER, *nli]).encode()
    korsts = "\n".join("\t".join(row) for row in [KORSTS_HEADER, *sts]).encode()
    scored = to_csv([["sentence1", "sentence2", "label"], *([x, y, score] for *_, score, x, y in sts)])
    jsonl = "\n".join(json.dumps({"text1": p, "text2": h}, ensure_ascii=draw.random() < 0.5) for p, h, _ in nli)
    return [
        ("n.tsv", tsv, our_nli, slow_nli),
        ("s.tsv", korsts, our_sts, slow_sts(lambda text: text.split("\t"))),
        ("s.csv", scored, our_sts, slow_sts(slow_csv_row)),
        ("p.jsonl", jsonl.encode(), our_pairs, slow_pairs),
        ("t.txt", "\n".join(p for p, _, _ in nli).encode(), our_sentences, slow_sentences),
    ]


def check(path, content, ours, expected):
    """Read `content` with bad rows as errors and with bad rows skipped; whether skipping gave rows."""
    path.write_bytes(content)
    found = {}
    for skip in (False, True):
        dropped = Dropped(skip)
        try:
            found[skip] = ours(path, dropped)
        except UserError as error:
            message = str(error)
            assert message.startswith(str(path)) and "\n" not in message and "\0" not in message, (content, message)
            assert PLACE.search(message) or WHOLE_FILE.search(message), (content, message)
            continue
        assert found[skip] == expected, content
        assert len(dropped.rows) == skip * sum(dropped.counts.values())
    assert True in found or False not in found, content
    return True in found


@pytest.mark.parametrize("part", range(4))
def test_mutated_files(tmp_path, part):
    draw = random.Random(20261124 + part)
    nli, sts = real_rows()
    inputs = read = 0
    while inputs < INPUTS // 4:
        for name, content, ours, slow in originals(draw, nli, sts):
            assert check(tmp_path / name, content, ours, slow(content))  # unharmed
            for _ in range(20):
                mutated = content
                for _ in range(draw.choice([1, 1, 2, 3])):
                    mutated = draw.choice(MUTATIONS)(draw, mutated)
                read += check(tmp_path / name, mutated, ours, slow(mutated))
                inputs += 1
    print(f"{inputs:,} mutated inputs, {read:,} read with bad rows skipped")
    assert read > 0.7 * inputs  # the others are refused whole: most of their lines are no text, or no row is left


def test_mutated_gzip(tmp_path):
    """A damaged archive is refused, or its rows are the original's."""
    draw = random.Random(1)
    nli, sts = real_rows()
    for _ in range(INPUTS // 100):
        name, content, ours, slow = draw.choice(originals(draw, nli, sts))
        mutated = draw.choice(MUTATIONS[:2] + [cut])(draw, gzip.compress(content))
        if mutated[:2] == b"\x1f\x8b":
            check(tmp_path / f"{name}.gz", mutated, ours, slow(content))


def test_mutated_parquet(tmp_path):
    """Refused, or what pyarrow itself reads in one piece."""
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    draw = random.Random(2)
    nli, _ = real_rows()
    path = tmp_path / "p.parquet"
    rows = nli[:ROWS]
    parquet.write_table(pyarrow.table({"text1": [p for p, _, _ in rows], "text2": [h for _, h, _ in rows]}), path)
    original = path.read_bytes()
    for _ in range(INPUTS // 100):
        mutated = draw.choice([flip_bytes, cut])(draw, original)
        path.write_bytes(mutated)
        try:
            found = read_pairs(path, dropped=Dropped(skip=True))
        except UserError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
            continue
        columns = parquet.read_table(path).to_pydict()
        entries = [{"text1": one, "text2": two} for one, two in zip(columns["text1"], columns["text2"])]
        entries = [entry for entry in entries if all(isinstance(text, str) for text in entry.values())]
        expected = slow_pairs("\n".join(map(json.dumps, entries)).encode())
        assert found == expected


@pytest.mark.parametrize("name", ["n.tsv", "s.csv", "p.jsonl", "t.txt"])
def test_ten_megabyte_lines(name, tmp_path):
    nli, sts = real_rows()
    draw = random.Random(3)
    _, content, ours, slow = next(file for file in originals(draw, nli, sts) if file[0] == name)
    for long in (
        b"\xea\xb0\x80" * 3_500_000,
        b"a" * 10_000_000,
        b'"' * 10_000_000,
        b"[" * 10_000_000,
        b"\t," * 5_000_000,
    ):
        lines = content.split(b"\n")
        lines.insert(5, long)
        check(tmp_path / name, b"\n".join(lines), ours, slow(b"\n".join(lines)))
