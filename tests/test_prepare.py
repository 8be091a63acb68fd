"""data.prepare: what it says about files whose content is known, and what it writes."""

import json

import pandas
import pytest

from data import prepare
from data.nli import read_triplets
from data.sentences import read_sentences
from data.sts import read_sts
from tests.conftest import SAMPLE
from tests.test_data import KORNLI, triplets_of, write

NLI_TEXT = KORNLI + "\n".join(
    "\t".join(row)
    for row in [
        ("비가 온다.", "날씨가 궂다.", "entailment"),
        ("비가 온다.", "하늘이 맑다.", "contradiction"),
        ("비가 온다.", "땅이 젖는다.", "entailment"),
        ("비가 온다.", "날씨가 궂다.", "entailment"),  # again
        ("눈이 온다.", "n/a", "entailment"),
        ("눈이 온다.", "춥다.", "entailment"),
        ("눈이 온다.", "아니 " * 40, "contradiction"),  # debris
        ("해가 떴다.", "- - -", "contradiction"),  # debris
        ("해가 떴다.", "밝다.", "neutral"),
        ("달이 떴다.",),
    ]
)


@pytest.fixture
def report(capsys):
    def run(*argv):
        prepare.main(list(map(str, argv)))
        return capsys.readouterr().out

    return run


def test_report_of_nli_rows(tmp_path, report):
    path = write(tmp_path / "nli.tsv", NLI_TEXT)
    out = report(path)
    assert f"{path}: NLI rows" in out
    assert "rows 10: 8 usable, 2 dropped" in out
    assert "1 n/a, as in line 6: 눈이 온다. | n/a | entailment" in out
    assert "1 wrong number of columns, as in line 11: 달이 떴다." in out
    assert "labels: entailment 4, neutral 1, contradiction 3" in out
    assert "distinct premises 3" in out
    assert "triplets of all files together: 2 with --pairing one, 3 with --pairing all" in out
    assert "rows that repeat an earlier one: 1, as in: 비가 온다. | 날씨가 궂다." in out


def test_json_that_holds_no_rows_is_shown_as_it_is(tmp_path, report, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"anchor": "가", "positive": "나", "negative": "다"}, 1, None, [True]]
    out = report(write(tmp_path / "x.json", json.dumps(rows)), "--on_bad_row", "skip")
    assert "rows 4: 1 usable, 3 dropped" in out


def test_clean_drops_debris_by_named_rules(tmp_path, report):
    path = write(tmp_path / "nli.tsv", NLI_TEXT)
    out = report(path, "--clean", "--output", tmp_path / "out.tsv", "--pairing", "all")
    assert "rows 10: 6 usable, 4 dropped" in out
    assert "1 repeated syllables, as in line 8: 눈이 온다. | 아니 아니" in out
    assert "1 no letter or digit, as in line 9: 해가 떴다. | - - -" in out
    assert triplets_of([tmp_path / "out.tsv"]) == [
        ("비가 온다.", "날씨가 궂다.", "하늘이 맑다."),
        ("비가 온다.", "땅이 젖는다.", "하늘이 맑다."),
    ]
    assert len(triplets_of([path], "all")) == 3  # without --clean nothing of it goes


@pytest.mark.parametrize(
    "text", ["ㅋㅋㅋㅋㅋㅋㅋㅋㅋㅋㅋㅋ 웃기다", "1000000000000원", "하하하하하", "아니 아니 아니다", "3", "OK"]
)
def test_clean_keeps_what_people_write(text):
    assert prepare.debris([text]) is None


def test_clean_on_real_data(shared):
    """The one sentence of dashes in KorSTS train, nothing in dev or XNLI."""
    pairs = read_sts([shared / "korean" / "KorNLU" / "KorSTS" / "sts-train.tsv"])
    found = [row for row in zip(pairs.sentences1, pairs.sentences2) if prepare.debris(row)]
    assert len(found) == 1
    corpus = read_triplets([shared / "korean" / "KorNLU" / "KorNLI" / "xnli.dev.ko.tsv"], "all")
    assert not prepare.debris(corpus.sentences)


def test_shared_sentences_and_pairs(tmp_path, report):
    train = write(tmp_path / "train.tsv", "가\t나\t다\n라\t마\t바\n")
    test = write(tmp_path / "test.tsv", "나\t가\t3\n라\t사\t1\n아\t자\t0\n")
    out = report(train, test)
    assert (
        "train.tsv and test.tsv: 3 (2 and 2 rows), 1 rows of test.tsv have both sentences of a row of train.tsv" in out
    )
    assert "sentences that two files share (rows that hold one)\n  none" in report(
        train, write(tmp_path / "x.txt", "하\n")
    )


def test_the_published_overlaps_of_korsts(shared, report):
    """FACTS: test shares 8 pairs with dev and 2 with train, and 166 test rows have a sentence that train has."""
    folder = shared / "korean" / "KorNLU" / "KorSTS"
    out = report(folder / "sts-train.tsv", folder / "sts-dev.tsv", folder / "sts-test.tsv")
    assert "sts-train.tsv and sts-test.tsv: 153 (338 and 166 rows), 2 rows" in out
    assert "sts-dev.tsv and sts-test.tsv: 85 (124 and 125 rows), 8 rows" in out
    assert "1 rows with a sentence without letter or digit" in out


def test_token_lengths_and_the_share_cut_off(tmp_path, report, vocabulary_files):
    path = write(tmp_path / "t.txt", "가\n" * 2 + "나\n" + "하나 둘 셋 넷 다섯 여섯 일곱\n")
    for tokenizer in ([], ["--tokenizer", vocabulary_files[0]]):
        out = report(path, "--max_len", 5, *tokenizer)
        assert "rows that repeat an earlier one: 1, as in: 가" in out
        assert "cut by --max_len 5: 33.33%" in out
    assert "       1-8          2 " in out


@pytest.mark.parametrize("suffix", ["tsv", "parquet"])
def test_output_of_every_kind_reads_back(suffix, tmp_path, report):
    out = tmp_path / f"triplets.{suffix}"
    report(SAMPLE / "train_nli.tsv", "--output", out)
    assert triplets_of([out]) == triplets_of([SAMPLE / "train_nli.tsv"])
    out = tmp_path / f"scored.{suffix}"
    report(SAMPLE / "valid_sts.tsv", SAMPLE / "test_sts.tsv", "--output", out)
    expected, found = read_sts([SAMPLE / "valid_sts.tsv", SAMPLE / "test_sts.tsv"]), read_sts([out])
    assert found.sentences1 == expected.sentences1 and (found.scores == expected.scores).all()
    out = tmp_path / f"sentences.{suffix}"
    report(write(tmp_path / "t.txt", "하나\n둘\n하나\n"), "--output", out)
    assert read_sentences(out) == ["하나", "둘", "하나"]
    out = tmp_path / f"pairs.{suffix}"
    report(write(tmp_path / "p.tsv", "하나\t일\n둘\t이\n"), "--output", out)
    if suffix == "parquet":
        assert pandas.read_parquet(out).to_dict("list") == {"sentence1": ["하나", "둘"], "sentence2": ["일", "이"]}
    else:
        assert out.read_text(encoding="utf-8") == "하나\t일\n둘\t이\n"


def test_skipped_rows_are_kept_in_a_file(tmp_path, report, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "t.tsv", "가\t나\t다\n가\t나\n가\t나\t라\n")
    out = report("t.tsv", "--on_bad_row", "skip")
    assert "rows 3: 2 usable, 1 dropped" in out and "the 1 dropped rows are in rejected_rows.jsonl" in out
    assert json.loads((tmp_path / "rejected_rows.jsonl").read_text()) == {
        "file": "t.tsv",
        "number": 2,
        "reason": "wrong number of columns",
        "row": ["가", "나"],
    }


def test_bad_calls(tmp_path, fails):
    path = write(tmp_path / "t.tsv", "가\t나\t다\n가\t나\n")
    assert "t.tsv, line 2: found 2 columns" in fails(prepare.main, [path])
    assert "no such file" in fails(prepare.main, [tmp_path / "x.tsv"])
    nothing = write(tmp_path / "nothing.tsv", KORNLI + "가\tn/a\tneutral\n")
    assert "nothing.tsv: no usable row; dropped 1 n/a" in fails(prepare.main, [nothing])
    good, sts = SAMPLE / "train_nli.tsv", SAMPLE / "valid_sts.tsv"
    assert "name a .tsv or .parquet" in fails(prepare.main, [good, "--output", tmp_path / "x.csv"])
    assert "is there already" in fails(prepare.main, [good, "--output", path])
    message = fails(prepare.main, [good, sts, "--output", tmp_path / "x.tsv"])
    assert "different kinds (scored pairs, triplets)" in message
