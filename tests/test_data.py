"""The readers: what they keep, what they drop, and how they refuse."""

import collections
import csv
import gzip
import io
import json
import random
import unicodedata

import numpy as np
import pandas
import pytest

from data.dropped import Dropped
from data.errors import UserError
from data.files import write_atomically
from data.nli import LABELS, read_triplets
from data.sentences import read_pairs, read_sentences
from data.sts import read_sts
from tests.conftest import SAMPLE

KORSTS_HEADER = ["genre", "filename", "year", "id", "score", "sentence1", "sentence2"]
KORNLI_HEADER = ["sentence1", "sentence2", "gold_label"]
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


def triplets_of(*args, **kwargs):
    """read_triplets' triplets spelled out."""
    sentences, examples = read_triplets(*args, **kwargs)
    return [tuple(sentences[i] for i in row) for row in examples]


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


@pytest.fixture
def kornli(tmp_path):
    return write(tmp_path / "nli.tsv", KORNLI + "".join("\t".join(row) + "\n" for row in ROWS))


def test_kornli_pairing_and_drops(kornli):
    dropped = Dropped()
    triplets = triplets_of([kornli], "all", dropped=dropped)
    assert triplets == [("비가 온다.", "날씨가 궂다.", "하늘이 맑다."), ("비가 온다.", "땅이 젖는다.", "하늘이 맑다.")]
    debris = {"empty": 1, "unknown label": 1, "wrong number of columns": 1}
    assert dropped.counts == {"n/a": 1, "hypothesis equal to its premise": 1, **debris}
    assert dropped.examples["n/a"] == (f"{kornli}, line 6", ["눈이 온다.", "n/a", "entailment"])
    one = triplets_of([kornli], "one", seed=1)
    assert len(one) == 1 and one[0] in triplets


def test_pairing_is_deterministic_and_seeded(tmp_path):
    rows = [
        (f"전제 {i}", f"가설 {i} {j}", "entailment contradiction".split()[j % 2]) for i in range(50) for j in range(8)
    ]
    path = write(tmp_path / "nli.tsv", KORNLI + "".join("\t".join(row) + "\n" for row in rows))
    first, second, other = (triplets_of([path], "one", seed) for seed in (1, 1, 2))
    assert first == second != other
    assert [premise for premise, _, _ in first] == [f"전제 {i}" for i in range(50)]
    assert all(int(e.split()[2]) % 2 == 0 and int(c.split()[2]) % 2 == 1 for _, e, c in first)
    assert len(triplets_of([path], "all")) == 50 * 4 * 4


def test_a_premise_is_paired_over_all_files(tmp_path):
    first = write(tmp_path / "a.tsv", KORNLI + "비가 온다.\t날씨가 궂다.\tentailment\n")
    second = write(tmp_path / "b.tsv", KORNLI + unicodedata.normalize("NFD", "비가 온다.\t맑다.\tcontradiction\n"))
    assert triplets_of([first, second]) == [("비가 온다.", "날씨가 궂다.", "맑다.")]
    with pytest.raises(UserError, match="no premise with both"):
        read_triplets([first])


def test_quotes_are_text(tmp_path):
    path = write(tmp_path / "t.tsv", '그가 말했다, "왔어\t그가 "왔다"고 했다\t"아무 말이 없었다\n가\t나\t다\n')
    assert triplets_of([path]) == [
        ('그가 말했다, "왔어', '그가 "왔다"고 했다', '"아무 말이 없었다'),
        ("가", "나", "다"),
    ]


def test_triplet_file_drops_what_says_nothing(tmp_path):
    path = write(tmp_path / "t.tsv", "가\t나\t다\n가\t가\t다\n가\tn/a\t다\n가\t나\t나\n")
    dropped = Dropped()
    triplets = triplets_of([path], dropped=dropped)
    assert triplets == [("가", "나", "다")] and sum(dropped.counts.values()) == 3


def test_bom_crlf_and_unicode_line_separators(tmp_path):
    path = write(tmp_path / "t.tsv", "\ufeff가\t나\u2028나\t다\r\n라\t마\t바\r\n\r\n")
    assert triplets_of([path]) == [("가", "나\u2028나", "다"), ("라", "마", "바")]


def test_cp949(tmp_path):
    path = write(tmp_path / "t.tsv", "가\t나\t다\n", "cp949")
    assert triplets_of([path], encoding="cp949") == [("가", "나", "다")]
    with pytest.raises(UserError, match=r"t.tsv, line 1: not valid utf-8 .* --encoding cp949"):
        read_triplets([path])


def test_each_sentence_is_kept_once(tmp_path):
    sentences, examples = read_triplets([write(tmp_path / "t.tsv", "가\t나\t다\n다\t나\t라\n")])
    assert sentences == ["가", "나", "다", "라"]
    assert examples.tolist() == [[0, 1, 2], [2, 1, 3]]


TRIPLET_ROWS = [("비가, 온다.", '그가 "왔다"고', "날이 맑다."), ("눈이 온다.", "춥다.", "덥다.")]


def table_file(path, names, rows, header=True):
    """`rows` written in the format that the name of `path` tells, with `names` for columns."""
    form, zipped = path.name.removesuffix(".gz").rsplit(".", 1)[1], path.suffix == ".gz"
    records = [dict(zip(names, row)) for row in rows]
    if form == "parquet":
        pandas.DataFrame(records).to_parquet(path)
        return path
    if form == "jsonl":
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    elif form == "json":
        text = json.dumps(records)
    else:
        out = io.StringIO()
        quoting = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None} if form == "tsv" else {}
        csv.writer(out, **quoting).writerows([names] * header + list(rows))
        text = out.getvalue()
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    return path


FORMATS = ["tsv", "csv", "jsonl", "json", "parquet", "tsv.gz", "csv.gz", "jsonl.gz"]


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_of_every_kind(form, tmp_path):
    """Columns by name wherever they stand, among others, under the several names they go by."""
    mixed = [(c, "x", a, b) for a, b, c in TRIPLET_ROWS]
    path = table_file(tmp_path / f"t.{form}", ["neg", "id", "query", "pos"], mixed)
    assert triplets_of([path]) == TRIPLET_ROWS
    assert read_pairs(path) == [row[:2] for row in TRIPLET_ROWS]
    assert read_sentences(path) == [row[0] for row in TRIPLET_ROWS]
    assert read_sentences(path, columns=["neg"]) == [row[2] for row in TRIPLET_ROWS]
    odd = table_file(tmp_path / f"odd.{form}", ["틀린 답", "id", "질문", "답"], mixed)
    assert triplets_of([odd], columns=["질문", "답", "틀린 답"]) == TRIPLET_ROWS
    with pytest.raises(UserError, match=rf"odd.{form}, \w+ 1: no columns 질문 답 없음; found 틀린 답 \| id"):
        triplets_of([odd], columns=["질문", "답", "없음"])
    with pytest.raises(UserError, match="--columns: 2 given, expected 3"):
        triplets_of([odd], columns=["질문", "답"])
    nli = [("비가 온다.", "날씨가 궂다.", "entailment"), ("비가 온다.", "맑다.", "contradiction")]
    path = table_file(tmp_path / f"nli.{form}", ["premise", "hypothesis", "gold_label"], nli)
    assert triplets_of([path]) == [("비가 온다.", "날씨가 궂다.", "맑다.")]
    pairs = read_sts(
        [table_file(tmp_path / f"sts.{form}", ["id", "text1", "text2", "score"], [(1, *r) for r in STS_ROWS])]
    )
    assert list(zip(pairs.sentences1, pairs.sentences2, pairs.scores)) == STS_ROWS


def test_columns_by_number(tmp_path):
    path = write(tmp_path / "t.tsv", "1\t다\t가\t나\n2\t바\t라\t마\n")
    assert triplets_of([path], columns=["3", "4", "2"]) == [("가", "나", "다"), ("라", "마", "바")]
    assert read_sentences(path, columns=["2"]) == ["다", "바"]
    short = write(tmp_path / "short.tsv", "1\t다\n2\t바\t라\t마\n")
    assert triplets_of([short], columns=["3", "4", "2"], dropped=Dropped(skip=True)) == [("라", "마", "바")]
    with pytest.raises(UserError, match="line 1: no columns 3 4 5; found 1 . 다"):
        triplets_of([path], columns=["3", "4", "5"])
    with pytest.raises(UserError, match="line 1: found 4 columns .* pick some with --columns"):
        triplets_of([path])


def test_line_1_of_a_csv_is_its_header(tmp_path):
    path = write(tmp_path / "t.csv", "오답,질문,정답\n다,가,나\n")
    assert triplets_of([path], columns=["2", "3", "1"]) == [("가", "나", "다")]
    with pytest.raises(UserError, match="line 1: expected the columns .* found 오답 . 질문 . 정답; name yours"):
        triplets_of([path])


def test_rows_without_header_are_told_apart_by_their_third_column(tmp_path):
    nli = write(tmp_path / "nli.tsv", "비가 온다.\t날씨가 궂다.\tentailment\n비가 온다.\t맑다.\tcontradiction\n")
    assert triplets_of([nli]) == [("비가 온다.", "날씨가 궂다.", "맑다.")]


BAD_ROWS = {
    "t.tsv": ["가\t나", "가\t\t다", "가\t나\t다\t라", "가\t나\t3.5", "가\0\t나\t다", "\udcff가\t나\t다"],
    "t.csv": ["가,나", "가,,다", '"가,나,다', '가"나",나,다', '"가"나,나,다', "가\0,나,다", "\udcff가,나,다"],
    "t.jsonl": ['{"anchor": "가"}', "[]", '{"anchor"', '{"anchor": 1, "positive": "나", "negative": "다"}', "3" * 5000]
    + [
        '{"anchor": "\\ud800", "positive": "나", "negative": "다"}',
        '{"anchor": null, "positive": "나", "negative": "다"}',
        '{"anchor": "가", "positive": ["나"], "negative": ["다"]}',
    ],
}
HEADERS = {"t.tsv": "anchor\tpositive\tnegative", "t.csv": "anchor,positive,negative"}
GOOD = {"t.tsv": "{0}하\t{0}나\t{0}둘", "t.csv": "{0}하,{0}나,{0}둘"}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_stop_with_file_and_line_or_are_kept_in_a_file(name, tmp_path, capsys):
    good = GOOD.get(name) or '{{"anchor": "{0}하", "positive": "{0}나", "negative": "{0}둘"}}'
    bad = BAD_ROWS[name]
    lines = [HEADERS[name]] if name in HEADERS else [good.format("첫")]
    for i, row in enumerate(bad):
        lines += [good.format(i), row]
    lines += [good.format("끝"), good.format("막")]
    path = tmp_path / name
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    for row in bad:
        alone = tmp_path / f"alone-{name}"
        alone.write_bytes("\n".join([*lines[:2], row, *lines[-2:]]).encode("utf-8", "surrogateescape"))
        with pytest.raises(UserError, match=rf"alone-{name}, line 3: \S"):
            read_triplets([alone])
    dropped = Dropped(skip=True)
    expected = [(f"{i}하", f"{i}나", f"{i}둘") for i in [*range(len(bad)), "끝", "막"]]
    assert triplets_of([path], dropped=dropped)[-len(expected) :] == expected
    assert sum(dropped.counts.values()) == len(bad)
    (tmp_path / "rejected_rows.jsonl").write_text("mine")
    dropped.report(tmp_path)
    assert "rejected_rows-1.jsonl" in capsys.readouterr().err
    assert (tmp_path / "rejected_rows.jsonl").read_text() == "mine"
    rejected = [json.loads(line) for line in (tmp_path / "rejected_rows-1.jsonl").open()]
    assert [record["number"] for record in rejected] == [i for i, line in enumerate(lines, 1) if line in bad]
    for record, row in zip(rejected, bad):
        if isinstance(record["row"], str):
            assert record["row"] == row


@pytest.mark.parametrize(
    "name, text",
    [
        ("t.tsv", "표\nanchor\tpositive\tnegative\n가\t나\t다\n"),
        ("t.tsv", "표\n" * 99 + "\nanchor\tpositive\tnegative\n가\t나\t다\n"),
        ("t.jsonl", '{}\n{"anchor": "가", "positive": "나", "negative": "다"}\n'),
    ],
)
def test_a_header_is_found_behind_rows_that_are_left_out(name, text, tmp_path):
    dropped = Dropped(skip=True)
    assert triplets_of([write(tmp_path / name, text)], dropped=dropped) == [("가", "나", "다")]
    assert dropped.counts == {"wrong number of columns": 99 if text.startswith("표\n표") else 1}


def test_an_error_that_has_text_alone_is_shown(tmp_path):
    """As numpy's are, on a full disk."""
    with pytest.raises(OSError, match="9 requested and 3 written"), write_atomically(tmp_path / "x"):
        raise OSError("9 requested and 3 written")
    assert not list(tmp_path.iterdir())


def test_a_wrong_encoding_is_an_error_even_where_bad_rows_are_skipped(tmp_path):
    path = write(tmp_path / "t.tsv", "가\t나\t다\n" * 10, "cp949")
    with pytest.raises(UserError, match="line 1: not valid utf-8 .* --encoding cp949"):
        read_triplets([path], dropped=Dropped(skip=True))
    path = write(tmp_path / "t.tsv", "가\t나\t다\n" * 10)
    for wrong in ("cp949", "latin-1", "utf-16"):
        with pytest.raises(UserError, match=r"t.tsv.*not .*--encoding utf-8"):
            read_triplets([path], encoding=wrong, dropped=Dropped(skip=True))


def test_utf_8_sig_and_decomposed_json(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "\\u1112\\u1161\\u11ab\\t줄\\n바꿈"}\n', encoding="utf-8-sig")
    for encoding in ("utf-8", "utf-8-sig"):
        assert read_sentences(path, encoding) == ["한 줄 바꿈"]


def test_damaged_gzip_and_parquet(tmp_path):
    good = table_file(tmp_path / "t.tsv.gz", ["text"], [[f"문장 {i}"] for i in range(1000)]).read_bytes()
    (tmp_path / "t.tsv.gz").write_bytes(good[:-9])
    with pytest.raises(UserError, match="t.tsv.gz: a damaged or incomplete gzip file"):
        read_sentences(tmp_path / "t.tsv.gz")
    path = write(tmp_path / "t.parquet", "text")
    with pytest.raises(UserError, match="t.parquet, after row 0: not a Parquet file, or a damaged one"):
        read_sentences(path)


def test_a_lost_line_end_is_named(tmp_path):
    with pytest.raises(UserError, match="line 2: 600,000 characters, expected at most 100,000"):
        read_sentences(write(tmp_path / "t.txt", "가\n" + "하나 둘 " * 120_000))
    with pytest.raises(UserError, match="line 1: found 5 columns .* its lines end in CR alone"):
        read_triplets([write(tmp_path / "t.tsv", "가\t나\t다\r라\t마\t바\r")])


def slow_pairing(rows):
    """{premise: (entailments, contradictions)}, the obvious way."""
    grouped = {}
    for premise, hypothesis, label in rows:
        sides = grouped.setdefault(premise, ([], []))
        if label != "neutral":
            sides[label == "contradiction"].append(hypothesis)
    return {premise: sides for premise, sides in grouped.items() if all(sides)}


def test_pairing_equals_the_obvious_way(tmp_path):
    draw = random.Random(3)
    rows = [
        (f"전제 {draw.randrange(60)}", f"가설 {draw.randrange(200)}", draw.choice(list(LABELS))) for _ in range(900)
    ]
    path = table_file(tmp_path / "nli.tsv", KORNLI_HEADER, rows)
    grouped = slow_pairing(rows)
    both = [
        (premise, e, c)
        for premise, (entailments, contradictions) in grouped.items()
        for e in dict.fromkeys(entailments)
        for c in dict.fromkeys(contradictions)
        if e != c
    ]
    assert triplets_of([path], "all") == both
    drawn = [triplets_of([path], "one", seed) for seed in range(300)]
    dropped = Dropped()
    seed, left_out = next((i, n) for i, t in enumerate(drawn) if (n := len(grouped) - len(t)))
    triplets_of([path], "one", seed, dropped=dropped)
    assert left_out == dropped.counts["positive equal to negative"]
    assert str(dropped) == f"{left_out} positive equal to negative (first: {path})"
    for triplets in drawn:
        assert [p for p, _, _ in triplets] == [p for p in grouped if p in {t[0] for t in triplets}]
        assert len(triplets) >= len(grouped) - 5 and set(triplets) <= set(both)
    # every candidate is drawn, as often as it stands in the file
    premise, (entailments, _) = max(grouped.items(), key=lambda item: len(set(item[1][0])))
    counts = collections.Counter(e for triplets in drawn for p, e, _ in triplets if p == premise)
    assert set(counts) == set(entailments)


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
    ("t.txt", "가\t나\t3\n", "found 1 column .*; a table with tabs is named .tsv"),
    ("t.csv", "가,나,3\n", "name yours with --columns .line 1 of a .csv is its header"),
    ("x.tsv", "가\t나\t3\n가\t나\n", "x.tsv, line 2: found 2 columns .* expected 3"),
    ("x.tsv", "가\t나\t3\n가\t나\t다\t라\n", "x.tsv, line 2: found 4 columns"),
    ("x.tsv", "가\t나\t5.5\n", "x.tsv, line 1: score 5.5 is outside 0..5"),
    ("x.tsv", "가\t나\tnan\n", "x.tsv, line 1: score nan is outside 0..5"),
    ("x.tsv", "가\t나\t3\n가\t나\t높음\n", "x.tsv, line 2: score '높음' is not a number"),
    ("x.tsv", "가\t나\t3\n \t나\t1\n", "x.tsv, line 2: a sentence is empty"),
    ("x.tsv", "가\t나\t3\n\n가\t나\n", "x.tsv, line 3: found 2 columns"),
    ("x.tsv", "", "x.tsv: the file is empty"),
    ("x.tsv", "가\t나\t3\n다\t라\t3\n", "every score is 3"),
    ("x.tsv", "\t".join(KORSTS_HEADER) + "\n", "x.tsv: holds no rows"),
    ("x.tsv", "\t".join(KORSTS_HEADER) + "\n가\t나\t3\n", "x.tsv, line 2: found 3 columns .* expected 7"),
    ("x.tsv", "첫째\t둘째\t점수\n가\t나\t3\n", "x.tsv, line 1: score '점수' is not a number.* --columns"),
    ("x.json", "[" * 100_000, "x.json.*not .* JSON"),
    (
        "x.json",
        '[{"sentence1": "\\ud800", "sentence2": "나", "labels": {"real-label": 1}}]',
        "entry 1: half a character",
    ),
    ("x.csv", "가,나,3\n", "x.csv, line 1: expected the columns .sentence1, sentence2, score., found 가 . 나 . 3"),
    ("x.csv", "sentence1,sentence2,label\n가,나\n", "x.csv, line 2: found 2 columns"),
    ("x.csv", 'sentence1,sentence2,label\n"가,나,3\n', "x.csv, line 2: not valid CSV"),
    ("x.json", '[{"sentence1": "가"}]', "x.json, entry 1: expected the columns .* found sentence1; name"),
    ("x.json", '[\n{"sentence1": ', "x.json, line 2: not valid JSON"),
    (
        "x.json",
        '[{"sentence1": 1, "sentence2": "나", "labels": {"real-label": 1}}]',
        "entry 1: 'sentence1' is not text",
    ),
]


@pytest.mark.parametrize("name, text, message", BAD_STS)
def test_bad_sts(name, text, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_sts([write(tmp_path / name, text)])


BAD_TRIPLETS = [
    (
        "sentence1\tsentence2\tscore\n가\t나\t3\n",
        "line 1: expected the columns .* or .anchor, positive, negative., found",
    ),
    ("premise\thypothesis\tlabel\n가\t나\t함의\n", "t.tsv, line 2: label '함의', expected one of entailment"),
    ("premise\thypothesis\tlabel\n가\t\tneutral\n", "t.tsv, line 2: a sentence is empty"),
    ("anchor\tnegative\tpositive\tnegative\n가\t나\t다\t라\n", "t.tsv, line 1: the header names 'negative' twice"),
    ("가,나,다\n", "t.tsv, line 1: found 1 column .가,나,다., expected 3 .*; save it with tabs"),
    ("가\t나\t다\n라\t마\t바\n가\t나\tentailment\n", "t.tsv, line 3: 'entailment' where a sentence should be"),
    ("가\t나\t3.4\n", "t.tsv, line 1: label '3.4', expected one of .* in words"),
    ("가\t나\t다\n가\t나\n", "t.tsv, line 2: found 2 columns"),
    ("가\t나\t다\n가\t\t다\n", "t.tsv, line 2: a sentence is empty"),
    ("가\t나\t다\t라\n", "t.tsv, line 1: found 4 columns"),
    ("\n\n", "t.tsv: the file is empty"),
    (KORNLI, "t.tsv: holds no rows"),
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
        read_sentences(tmp_path)
    with pytest.raises(UserError, match="no such encoding"):
        read_sentences(write(tmp_path / "x", "가"), "cp9499")
    with pytest.raises(UserError, match="line 1: not cp949 but UTF-8; try --encoding utf-8"):
        read_sentences(write(tmp_path / "x", "햏햏 뷁"), "cp949")


def test_utf16_says_so(tmp_path):
    path = write(tmp_path / "t.tsv", "가\t나\t다\n", "utf-16")
    for encoding in ("utf-8", "cp949"):
        with pytest.raises(UserError, match="this is UTF-16; add --encoding utf-16"):
            read_triplets([path], encoding=encoding)
    for name in ("utf-16", "UTF_16", "u16"):
        assert triplets_of([path], encoding=name) == [("가", "나", "다")]


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
    text = (shared / "korean" / "KorNLU" / "KorNLI" / name).read_text(encoding="utf-8")
    header, *rows = [line.split("\t") for line in text.rstrip("\n").split("\n")]
    assert header == KORNLI_HEADER and len(rows) == KORNLI_ROWS[name]
    assert all(len(fields) == 3 and fields[2] in LABELS for fields in rows)


@pytest.mark.parametrize("name", TRIPLET_COUNTS)
def test_kornli_triplets_equal_those_of_the_sources(name, shared):
    other, count = TRIPLET_COUNTS[name]
    triplets = triplets_of([shared / "korean" / "KorNLU" / "KorNLI" / name], "all")
    expected = triplets_of([shared / "korean" / "triplets" / other])
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
    dropped = Dropped()
    triplets = triplets_of([SAMPLE / "train_nli.tsv"], dropped=dropped)
    valid, test = (read_sts([SAMPLE / f"{part}_sts.tsv"]) for part in ("valid", "test"))
    assert len(triplets) == 400 and not dropped.counts
    assert len(valid.scores) == len(test.scores) == 200
    train_sentences = [sentence for triplet in triplets for sentence in triplet]
    sentences = [*train_sentences, *valid.sentences1, *valid.sentences2, *test.sentences1, *test.sentences2]
    assert len(set(sentences)) == len(sentences) == 2000
    for pairs in (valid, test):
        bands = np.histogram(pairs.scores, bins=[0, 1, 2, 3, 4, 5.01])[0]
        assert bands.min() >= 20


def test_a_byte_order_mark_is_no_text_in_any_encoding(tmp_path):
    for name in ("utf-8", "utf-16-le", "utf-16"):
        text = "\ufeff가\t나\t다\n" if name != "utf-16" else "가\t나\t다\n"
        assert triplets_of([write(tmp_path / "t.tsv", text, name)], encoding=name) == [("가", "나", "다")]


def test_names_of_columns_may_be_decomposed(tmp_path):
    path = write(tmp_path / "t.csv", "물음,좋음,나쁨\n가,나,다\n")
    columns = [unicodedata.normalize("NFD", name) for name in ("물음", "좋음", "나쁨")]
    assert triplets_of([path], columns=columns) == [("가", "나", "다")]
