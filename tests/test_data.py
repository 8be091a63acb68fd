"""The readers: what they keep, what they drop, and how they refuse."""

import csv
import json
import unicodedata

import numpy as np
import pytest

from data.errors import UserError
from data.nli import KORNLI_HEADER, LABELS, index_sentences, read_triplets
from data.sts import KORSTS_HEADER, read_sts
from data.tables import read_lines, read_tsv
from tests.conftest import SAMPLE

KORNLI = "sentence1\tsentence2\tgold_label\n"
ROWS = [
    ("비가 온다.", "날씨가 궂다.", "entailment"),
    ("비가 온다.", "하늘이 맑다.", "contradiction"),
    ("비가 온다.", "땅이 젖는다.", "entailment"),
    ("비가 온다.", "우산이 없다.", "neutral"),
    ("눈이 온다.", "n/a", "entailment"),
    ("눈이 온다.", "덥다.", "contradiction"),
    ("해가 떴다.", "해가 떴다.", "entailment"),
    ("해가 떴다.", "", "contradiction"),
    ("해가 떴다.", "밤이다.", "-"),
    ("달이 떴다.",),
]


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


@pytest.fixture
def kornli(tmp_path):
    return write(tmp_path / "nli.tsv", KORNLI + "".join("\t".join(row) + "\n" for row in ROWS))


def test_kornli_pairing_and_drops(kornli):
    triplets, dropped = read_triplets([kornli], "all")
    assert triplets == [("비가 온다.", "날씨가 궂다.", "하늘이 맑다."), ("비가 온다.", "땅이 젖는다.", "하늘이 맑다.")]
    assert dropped.counts == {"n/a": 1, "hypothesis equal to its premise": 1, "empty": 1, "malformed": 2}
    assert dropped.first["n/a"] == f"{kornli}, line 6"
    one, _ = read_triplets([kornli], "one", seed=1)
    assert len(one) == 1 and one[0] in triplets


def test_pairing_is_deterministic_and_seeded(tmp_path):
    rows = [
        (f"전제 {i}", f"가설 {i} {j}", "entailment contradiction".split()[j % 2]) for i in range(50) for j in range(8)
    ]
    path = write(tmp_path / "nli.tsv", KORNLI + "".join("\t".join(row) + "\n" for row in rows))
    first, second, other = (read_triplets([path], "one", seed)[0] for seed in (1, 1, 2))
    assert first == second != other
    assert [premise for premise, _, _ in first] == [f"전제 {i}" for i in range(50)]
    assert all(int(e.split()[2]) % 2 == 0 and int(c.split()[2]) % 2 == 1 for _, e, c in first)
    assert len(read_triplets([path], "all")[0]) == 50 * 4 * 4


def test_a_premise_is_paired_over_all_files(tmp_path):
    first = write(tmp_path / "a.tsv", KORNLI + "비가 온다.\t날씨가 궂다.\tentailment\n")
    second = write(tmp_path / "b.tsv", KORNLI + unicodedata.normalize("NFD", "비가 온다.\t맑다.\tcontradiction\n"))
    assert read_triplets([first, second])[0] == [("비가 온다.", "날씨가 궂다.", "맑다.")]
    with pytest.raises(UserError, match="no premise with both"):
        read_triplets([first])


def test_quotes_are_text(tmp_path):
    path = write(tmp_path / "t.tsv", '그가 말했다, "왔어\t그가 "왔다"고 했다\t"아무 말이 없었다\n가\t나\t다\n')
    assert read_triplets([path])[0] == [
        ('그가 말했다, "왔어', '그가 "왔다"고 했다', '"아무 말이 없었다'),
        ("가", "나", "다"),
    ]


def test_triplet_file_drops_what_says_nothing(tmp_path):
    path = write(tmp_path / "t.tsv", "가\t나\t다\n가\t가\t다\n가\tn/a\t다\n가\t나\t나\n")
    triplets, dropped = read_triplets([path])
    assert triplets == [("가", "나", "다")] and sum(dropped.counts.values()) == 3


def test_bom_crlf_and_unicode_line_separators(tmp_path):
    path = write(tmp_path / "t.tsv", "\ufeff가\t나\u2028나\t다\r\n라\t마\t바\r\n\r\n")
    assert read_triplets([path])[0] == [("가", "나\u2028나", "다"), ("라", "마", "바")]


def test_cp949(tmp_path):
    path = write(tmp_path / "t.tsv", "가\t나\t다\n", "cp949")
    assert read_triplets([path], encoding="cp949")[0] == [("가", "나", "다")]
    with pytest.raises(UserError, match=r"t.tsv, line 1: not valid utf-8 .* --encoding cp949"):
        read_triplets([path])


def test_index_sentences():
    sentences, examples = index_sentences([("가", "나", "다"), ("다", "나", "라")])
    assert sentences == ["가", "나", "다", "라"]
    assert examples.tolist() == [[0, 1, 2], [2, 1, 3]]


STS_ROWS = [('첫 "문장', "둘째, 문장", 3.8), ("같은 문장", "같은 문장", 5.0), ("셋째", "넷째", 0.0)]


def sts_file(folder, kind):
    if kind == "korsts":
        rows = "".join(f"main-captions\tMSRvid\t2012test\t0001\t{s}\t{a}\t{b}\n" for a, b, s in STS_ROWS)
        return write(folder / "korsts.tsv", "\t".join(KORSTS_HEADER) + "\n" + rows.rstrip("\n"))
    if kind == "plain":
        return write(folder / "plain.tsv", "".join(f"{a}\t{b}\t{s}\n" for a, b, s in STS_ROWS))
    if kind == "json":
        entries = [{"sentence1": a, "sentence2": b, "labels": {"real-label": s}} for a, b, s in STS_ROWS]
        return write(folder / "klue.json", json.dumps(entries, ensure_ascii=False))
    with (folder / "klue.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("sentence1", "sentence2", "label"), *STS_ROWS])
    return folder / "klue.csv"


@pytest.mark.parametrize("kind", ["korsts", "plain", "json", "csv"])
def test_every_sts_format(kind, tmp_path):
    path = sts_file(tmp_path, kind)
    pairs = read_sts([path])
    assert list(zip(pairs.sentences1, pairs.sentences2, pairs.scores)) == STS_ROWS
    assert pairs.scores.dtype == np.float64
    assert len(read_sts([path, path]).scores) == 6


BAD_STS = [
    ("x.tsv", "가\t나\t3\n가\t나\n", "x.tsv, line 2: found 2 columns .* expected 3"),
    ("x.tsv", "가\t나\t3\n가\t나\t다\t라\n", "x.tsv, line 2: found 4 columns"),
    ("x.tsv", "가\t나\t5.5\n", "x.tsv, line 1: score 5.5 is outside 0..5"),
    ("x.tsv", "가\t나\tnan\n", "x.tsv, line 1: score nan is outside 0..5"),
    ("x.tsv", "가\t나\t3\n가\t나\t높음\n", "x.tsv, line 2: score '높음' is not a number"),
    ("x.tsv", "가\t나\t3\n \t나\t1\n", "x.tsv, line 2: a sentence is empty"),
    ("x.tsv", "가\t나\t3\n\n가\t나\t1\n", "x.tsv, line 2: an empty line"),
    ("x.tsv", "", "x.tsv: the file is empty"),
    ("x.tsv", "가\t나\t3\n다\t라\t3\n", "every score is 3"),
    ("x.tsv", "\t".join(KORSTS_HEADER) + "\n", "x.tsv: holds no rows"),
    ("x.tsv", "\t".join(KORSTS_HEADER) + "\n가\t나\t3\n", "x.tsv, line 2: found 3 columns .* expected 7"),
    ("x.tsv", "첫째\t둘째\t점수\n가\t나\t3\n", "x.tsv, line 1: score '점수' is not a number.* remove the line"),
    ("x.json", "[" * 100_000, "x.json.*not .* JSON"),
    (
        "x.json",
        '[{"sentence1": "\\ud800", "sentence2": "나", "labels": {"real-label": 1}}]',
        "entry 1: half a character",
    ),
    ("x.csv", "가,나,3\n", "x.csv, line 1: expected a header with sentence1"),
    ("x.csv", "sentence1,sentence2,label\n가,나\n", "x.csv, line 2: found 2 columns"),
    ("x.csv", 'sentence1,sentence2,label\n"가,나,3\n', "x.csv, line 2: not valid CSV"),
    ("x.json", '[{"sentence1": "가"}]', "x.json, entry 1: expected a list of"),
    ("x.json", '[\n{"sentence1": ', "x.json, line 2: not valid JSON"),
    ("x.json", '[{"sentence1": 1, "sentence2": "나", "labels": {"real-label": 1}}]', "entry 1: a sentence is not text"),
]


@pytest.mark.parametrize("name, text, message", BAD_STS)
def test_bad_sts(name, text, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_sts([write(tmp_path / name, text)])


BAD_TRIPLETS = [
    ("Anchor\tPositive\tNegative\n가\t나\t다\n", "t.tsv, line 1: a header; remove the line"),
    ("premise\thypothesis\tlabel\n가\t나\tentailment\n", "t.tsv, line 1: a header; .* sentence1 sentence2 gold_label"),
    ("가\t나\t다\n\n가\t나\t다\n", "t.tsv, line 2: an empty line; remove it"),
    ("가,나,다\n", "t.tsv, line 1: found 1 column .가,나,다., expected 3 .*; save it with tabs"),
    ("가\t나\t다\n가\t나\tentailment\n", "t.tsv, line 2: a label where a sentence should be; line 1"),
    ("가\t나\t3.4\n", "t.tsv, line 1: '3.4' where a sentence should be"),
    ("가\t나\t다\n가\t나\n", "t.tsv, line 2: found 2 columns"),
    ("가\t나\t다\n가\t\t다\n", "t.tsv, line 2: a sentence is empty"),
    ("가\t나\t다\t라\n", "t.tsv, line 1: found 4 columns"),
    ("\n\n", "t.tsv: the file is empty"),
    (KORNLI, "no premise with both"),
    (KORNLI + "가\t나\tneutral\n", "no premise with both"),
]


@pytest.mark.parametrize("text, message", BAD_TRIPLETS)
def test_bad_triplets(text, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_triplets([write(tmp_path / "t.tsv", text)])


def test_missing_file_folder_and_encoding(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_sts([tmp_path / "x.tsv"])
    with pytest.raises(UserError, match="is a folder"):
        read_lines(tmp_path)
    with pytest.raises(UserError, match="no such encoding"):
        read_lines(write(tmp_path / "x", "가"), "cp9499")
    with pytest.raises(UserError, match="line 1: not valid cp949 .* try --encoding utf-8"):
        read_lines(write(tmp_path / "x", "햏햏 뷁"), "cp949")


def test_utf16_says_so(tmp_path):
    path = write(tmp_path / "t.tsv", "가\t나\t다\n", "utf-16")
    for encoding in ("utf-8", "cp949"):
        with pytest.raises(UserError, match="this is UTF-16; add --encoding utf-16"):
            read_triplets([path], encoding=encoding)
    assert read_triplets([path], encoding="utf-16")[0] == [("가", "나", "다")]


KORNLI_ROWS = {"xnli.dev.ko.tsv": 2490, "xnli.test.ko.tsv": 5010, "snli_1.0_train_sample.ko.tsv": 984}
ROW_COUNTS = {  # of the published files, FACTS.md and SOURCES.md
    "KorSTS/sts-train.tsv": 5749,
    "KorSTS/sts-dev.tsv": 1500,
    "KorSTS/sts-test.tsv": 1379,
}
TRIPLET_COUNTS = {  # every entailment x contradiction, as in triplets/
    "xnli.dev.ko.tsv": ("xnli_dev.tsv", 829),
    "xnli.test.ko.tsv": ("xnli_test.tsv", 1669),
    "snli_1.0_train_sample.ko.tsv": ("kornli_snli_sample.tsv", 661),
}


@pytest.mark.parametrize("name", ROW_COUNTS)
def test_korsts_row_counts(name, shared):
    assert len(read_sts([shared / "korean" / "KorNLU" / name]).scores) == ROW_COUNTS[name]


@pytest.mark.parametrize("name", KORNLI_ROWS)
def test_kornli_row_counts(name, shared):
    header, *rows = [fields for _, fields in read_tsv(shared / "korean" / "KorNLU" / "KorNLI" / name)]
    assert header == KORNLI_HEADER and len(rows) == KORNLI_ROWS[name]
    assert all(len(fields) == 3 and fields[2] in LABELS for fields in rows)


@pytest.mark.parametrize("name", TRIPLET_COUNTS)
def test_kornli_triplets_equal_those_of_the_sources(name, shared):
    other, count = TRIPLET_COUNTS[name]
    triplets, _ = read_triplets([shared / "korean" / "KorNLU" / "KorNLI" / name], "all")
    expected, _ = read_triplets([shared / "korean" / "triplets" / other])
    assert len(triplets) == count and sorted(triplets) == sorted(expected)


def test_the_29_rows_that_a_quoting_reader_alters(shared):
    path = shared / "korean" / "KorNLU" / "KorSTS" / "sts-test.tsv"
    pairs = read_sts([path])
    lines = path.read_text(encoding="utf-8").split("\n")[1:]
    quoted = [i for i, line in enumerate(lines) if next(csv.reader([line], delimiter="\t")) != line.split("\t")]
    assert len(quoted) == 29
    for i in quoted:
        assert [pairs.sentences1[i], pairs.sentences2[i]] == [field.strip() for field in lines[i].split("\t")[5:]]


def test_klue_sts_csv(shared):
    assert len(read_sts([shared / "korean" / "KLUE" / "klue_sts_train.csv"]).scores) == 11668


def test_sample_sets_are_whole_and_share_no_sentence():
    triplets, dropped = read_triplets([SAMPLE / "train_nli.tsv"])
    valid, test = (read_sts([SAMPLE / f"{part}_sts.tsv"]) for part in ("valid", "test"))
    assert len(triplets) == 400 and not dropped.counts
    assert len(valid.scores) == len(test.scores) == 200
    train_sentences = [sentence for triplet in triplets for sentence in triplet]
    sentences = [*train_sentences, *valid.sentences1, *valid.sentences2, *test.sentences1, *test.sentences2]
    assert len(set(sentences)) == len(sentences) == 2000
    for pairs in (valid, test):
        bands = np.histogram(pairs.scores, bins=[0, 1, 2, 3, 4, 5.01])[0]
        assert bands.min() >= 20
