"""The three scripts as users call them: results, output, and one sentence for every mistake."""

import contextlib
import csv
import gzip
import importlib
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import evaluate
import SemanticSearch
import train
from data import download
from data.sts import read_sts
from model.checkpoint import load_encoder, save_encoder
from model.metrics import CORRELATIONS, evaluate_sts
from tests.conftest import SAMPLE

ROOT = Path(__file__).parent.parent
TEST = SAMPLE / "test_sts.tsv"
VALID = SAMPLE / "valid_sts.tsv"


@pytest.fixture
def run_folder(tiny_bert, tmp_path):
    save_encoder(load_encoder(tiny_bert, pooling="mean"), tmp_path / "run")
    return tmp_path / "run"


def test_evaluate_prints_the_table_and_writes_json(run_folder, tmp_path, capsys):
    out = tmp_path / "scores.json"
    evaluate.main(["--model", str(run_folder), "mini", "--test_data", str(TEST), str(VALID), "--json", str(out)])
    results = json.loads(out.read_text())
    assert [(r["model"], r["data"]) for r in results] == [
        (model, str(data)) for model in (str(run_folder), "mini") for data in (TEST, VALID)
    ]
    assert list(results[0]) == ["model", "data", "rows", "avg", *CORRELATIONS]
    pairs = read_sts([TEST])
    encode = load_encoder(run_folder).encode
    expected = evaluate_sts(encode, [*pairs.sentences1, *pairs.sentences2], pairs.scores)
    assert {key: results[0][key] for key in expected} == pytest.approx(expected) and results[0]["rows"] == 200
    header, _, *rows = capsys.readouterr().out.rstrip("\n").split("\n")
    assert header.endswith("| AVG | Cosine Pearson | Cosine Spearman | Euclidean Pearson | Euclidean Spearman | "
                           "Manhattan Pearson | Manhattan Spearman | Dot Pearson | Dot Spearman |")  # fmt: skip
    assert len(rows) == 4 and f"{results[0]['avg']:.2f}" in rows[0]


def test_json_has_null_where_no_correlation_exists(run_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("model.encoder.SentenceEncoder.encode", lambda self, s, batch_size: torch.ones(len(s), 2))
    out = tmp_path / "scores.json"
    evaluate.main(["--model", str(run_folder), "--test_data", str(TEST), "--json", str(out)])
    assert json.loads(out.read_text())[0]["cosine_spearman"] is None
    assert "the same similarity" in capsys.readouterr().err


def readme_demo(readme):
    """The README's Python block, as a namespace after it was executed."""
    blocks = re.findall(r"```python\n(.*?)```", readme, flags=re.S)
    (demo,) = [block for block in blocks if "example_model_setting" in block]
    namespace = {}
    exec(demo, namespace)
    return namespace


@pytest.fixture
def in_run_folder(run_folder, tmp_path, monkeypatch):
    """The working directory has an `output/` with a trained model."""
    run_folder.rename(tmp_path / "output")
    monkeypatch.chdir(tmp_path)


def test_readme_demo_runs_unchanged_and_prints_what_the_script_prints(in_run_folder, capsys):
    namespace = readme_demo((ROOT / "README.md").read_text(encoding="utf-8"))
    namespace["main"]()
    from_readme = capsys.readouterr().out
    SemanticSearch.main([])
    assert capsys.readouterr().out == from_readme
    assert from_readme.count("Top 5 most similar sentences in corpus:") == 3
    assert len(re.findall(r"^.+ \(Score: -?\d\.\d{4}\)$", from_readme, flags=re.M)) == 15


def test_the_originals_readme_demo_runs_unchanged(shared, in_run_folder, capsys):
    readme_demo((shared / "reference" / "README.kosimcse.md").read_text(encoding="utf-8"))["main"]()
    assert capsys.readouterr().out.count("Query:") == 3


def test_search_ranks_by_cosine(run_folder, tmp_path, capsys):
    corpus = tmp_path / "corpus.txt"
    lines = [line.split("\t")[0] for line in TEST.read_text(encoding="utf-8").split("\n")[:30]]
    corpus.write_text("\n\n".join(lines + lines[:5]) + "\n", encoding="utf-8")  # what repeats is found once
    flags = ["--model", str(run_folder), "--corpus", str(corpus), "--top_k", "40"]
    SemanticSearch.main([*flags, "--query", lines[3], "--query", "새 질문"])
    first, second = capsys.readouterr().out.split("Query: ")[1:]
    found = re.findall(r"^(.+) \(Score: (-?\d\.\d{4})\)$", first, flags=re.M)
    assert len(found) == 30 and found[0] == (lines[3], "1.0000") and second.startswith("새 질문")
    encode = load_encoder(run_folder).encode
    vectors = np.array(encode(lines).tolist())
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = dict(zip(lines, vectors @ vectors[3]))
    assert [float(score) for _, score in found] == pytest.approx(sorted(scores.values(), reverse=True), abs=1e-3)


def test_search_says_what_of_long_sentences_it_reads(tmp_path, capsys):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(f"짧은 문장\n{'긴 문장 ' * 40}\n", encoding="utf-8")
    SemanticSearch.main(["--model", "mini", "--corpus", str(corpus), "--query", "문장"])
    assert "1 of 2 sentences fill --max_len 64 tokens" in capsys.readouterr().err
    corpus.write_text("짧은 문장\n다른 문장\n", encoding="utf-8")
    SemanticSearch.main(["--model", "mini", "--corpus", str(corpus), "--query", "문장"])
    assert "--max_len" not in capsys.readouterr().err


def test_search_in_a_corpus_of_bad_rows_alone(run_folder, tmp_path, monkeypatch, fails):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.jsonl").write_text('{"sentence": 1}\n{"sentence": ""}\n')
    argv = ["--model", run_folder, "--corpus", "c.jsonl", "--on_bad_row", "skip", "--query", "비"]
    assert "c.jsonl: no usable row; dropped 1 not text" in fails(SemanticSearch.main, argv)


def test_search_without_a_checkpoint_says_what_it_uses(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    SemanticSearch.main([])
    output = capsys.readouterr()
    assert "output/nli_checkpoint.pt is not there: using mini" in output.err
    assert output.out.count("(Score:") == 15


def train_with(**replaced):
    values = {"model": "mini", "train_data": SAMPLE / "train_nli.tsv", "valid_data": VALID, **replaced}
    return [text for name, value in values.items() for text in (f"--{name}", value)]


BAD_FLAGS = [
    (train, train_with(pooling="max"), "invalid choice: 'max'"),
    (train, train_with(epochs="0"), "'0' is not a whole number of at least 1"),
    (train, train_with(lr="-1"), "'-1' is not a number above 0"),
    (train, train_with(warmup_ratio="1"), "'1' is not a number from 0"),
    (train, train_with(dropout="x"), "'x' is not a number from 0"),
    (train, train_with(device="cuda:99"), "'cuda:99' is not a device of this machine"),
    (train, train_with(device="cuda:-1"), "'cuda:-1' is not a device of this machine"),
    (train, train_with(device="cuda:"), "'cuda:' is not a device of this machine"),
    (train, train_with(device="meta"), "'meta' is not a device of this machine"),
    (train, train_with(patience="1", select_by="last"), "--patience: stops where scores rise no more"),
    (
        train,
        ["--model", "mini", "--task", f"simcse:1:8:{SAMPLE}/train_nli.tsv", "--batch_size", "8"],
        "--task: names objective and batch size itself",
    ),
    (train, train_with(seed="-1"), "'-1' is not a whole number from 0 up to 2^63"),
    (train, train_with(seed=str(2**64)), "is not a whole number from 0 up to 2^63"),
    (train, train_with(output="x"), "unrecognized arguments: --output x"),  # not taken for --output_dir
    (train, train_with(unknown="1"), "unrecognized arguments: --unknown 1"),
    (train, train_with(max_len="129"), "--max_len 129: this model takes 3 to 128 tokens"),
    (train, train_with(train_data="missing.tsv"), "missing.tsv: no such file"),
    (train, train_with(valid_data="missing.tsv"), "missing.tsv: no such file"),
    (train, train_with(model="missing.pt"), "missing.pt: no such file or folder"),
    (train, train_with(encoding="cp9499"), "--encoding cp9499: no such encoding"),
    (evaluate, ["--model", "mini", "--test_data", "missing.tsv"], "missing.tsv: no such file"),
    (
        evaluate,
        ["--model", "mini", "--test_data", TEST, "--json", "no/x.json"],
        "--json no/x.json: the folder no is not there",
    ),
    (
        evaluate,
        ["--model", "mini", "--test_data", TEST, "--json", "/dev/null"],
        "--json /dev/null: is not an ordinary file",
    ),
    (evaluate, ["--model", "mini", "--test_data", TEST, "--json", TEST], "is one of --test_data"),
    (evaluate, ["--model", "mini", "--test_data", TEST, "--json", "model.pt"], "expected a name that ends in .json"),
    (evaluate, ["--test_data", TEST], "output, the default of --model, is not there; train first"),
    (SemanticSearch, ["--query", "\udcff"], "or no text"),
    (SemanticSearch, ["--corpus", TEST], "--corpus: nothing to look for; add --query TEXT"),
    (SemanticSearch, ["--query", " "], "--query: is empty"),
    (SemanticSearch, ["--top_k", "0"], "'0' is not a whole number of at least 1"),
]


def test_what_is_wrong_with_dev_data_names_its_own_flag(fails, tmp_path):
    (tmp_path / "dev.csv").write_text("가,나,다\n1,2,3\n", encoding="utf-8")
    argv = train_with(valid_data=tmp_path / "dev.csv")
    assert "name yours with --valid_columns" in fails(train.main, argv)
    assert "--valid_columns: 2 given, expected 3" in fails(train.main, [*argv, "--valid_columns", "1", "2"])


def test_a_run_folder_that_is_no_text(fails, tmp_path):
    folder = str(tmp_path) + "/\udcc7\udcd1"
    assert "is not UTF-8; name another folder" in fails(train.main, train_with(output_dir=folder))


def test_json_replaces_scores_alone(fails, tmp_path):
    (tmp_path / "train_config.json").write_text("{}")
    argv = ["--model", "mini", "--test_data", TEST, "--json", tmp_path / "train_config.json"]
    assert "expected a list" in fails(evaluate.main, argv)
    assert (tmp_path / "train_config.json").read_text() == "{}"


@pytest.mark.parametrize("script, argv, message", BAD_FLAGS)
def test_bad_flags(script, argv, message, fails, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in fails(script.main, argv)
    assert not (tmp_path / "output").exists()  # refused before anything was written


BAD_FILES = [
    (b"\xef\xbb\xbf", "the file is empty"),
    (b"PK\x03\x04...", "an Excel workbook or another archive"),
    ("가\t나\t다\n가\t나\n".encode(), "line 2: found 2 columns"),
    ("가\t나\t다\n가\t\t다\n".encode(), "line 2: a sentence is empty"),
    ("가\t나\t다\n라\t마\t바\n".encode("cp949"), "line 1: not valid utf-8 (byte 0xb0); Korean spreadsheets save cp949"),
]


@pytest.mark.parametrize("content, message", BAD_FILES)
def test_bad_training_file(content, message, fails, tmp_path):
    (tmp_path / "bad.tsv").write_bytes(content)
    output = tmp_path / "output"
    assert message in fails(train.main, [*train_with(train_data=tmp_path / "bad.tsv"), "--output_dir", output])
    assert not output.exists()


def test_repeated_flags_add_up(tiny_bert, tmp_path):
    flags = ["--model", str(tiny_bert), "--epochs", "1", "--output_dir", str(tmp_path / "run")]
    for name, file in (("train", SAMPLE / "train_nli.tsv"), ("valid", VALID), ("valid", TEST)):
        flags += [f"--{name}_data", str(file)]
    (tmp_path / "more.tsv").write_text("가\t나\t다\n", encoding="utf-8")
    train.main([*flags, "--train_data", str(tmp_path / "more.tsv")])
    assert (
        json.loads((tmp_path / "run" / "train_config.json").read_text(encoding="utf-8"))["tasks"][0]["examples"] == 401
    )


def test_scores_before_a_bad_model_are_kept(run_folder, tmp_path, capsys):
    out = tmp_path / "scores.json"
    with pytest.raises(SystemExit):
        evaluate.main(["--model", str(run_folder), "missing.pt", "--test_data", str(TEST), "--json", str(out)])
    assert len(capsys.readouterr().out.rstrip("\n").split("\n")) == 3
    assert [result["model"] for result in json.loads(out.read_text())] == [str(run_folder)]


def test_bad_rows_are_skipped_counted_and_kept_in_the_run_folder(tiny_bert, tmp_path, capsys):
    rows = (SAMPLE / "train_nli.tsv").read_text(encoding="utf-8").splitlines()[:40]
    (tmp_path / "bad.tsv").write_text("\n".join([*rows[:20], "둘\t뿐", *rows[20:]]), encoding="utf-8")
    argv = list(map(str, [*train_with(model=tiny_bert, train_data=tmp_path / "bad.tsv"), "--epochs", 1]))
    for _ in range(2):
        train.main([*argv, "--on_bad_row", "skip", "--output_dir", str(tmp_path / "run")])
        assert "train: 40 for simcse" in (err := capsys.readouterr().err)
        assert f"dropped: 1 wrong number of columns (first: {tmp_path / 'bad.tsv'}, line 21)" in err
    for folder in (tmp_path / "run", tmp_path / "run" / "previous-1"):
        assert json.loads((folder / "rejected_rows.jsonl").read_text())["row"] == ["둘", "뿐"]


def test_tables_of_ones_own_through_every_script(tiny_bert, tmp_path, capsys):
    """Columns by name, CSV and JSON lines, compressed."""
    triplets = [line.split("\t") for line in (SAMPLE / "train_nli.tsv").read_text(encoding="utf-8").splitlines()[:40]]
    scored = [line.split("\t") for line in VALID.read_text(encoding="utf-8").splitlines()[:40]]
    with gzip.open(tmp_path / "t.csv.gz", "wt", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["나쁨", "질문", "좋음"], *([c, a, b] for a, b, c in triplets)])
    with (tmp_path / "s.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"점수": float(s), "하나": a, "둘": b}) + "\n" for a, b, s in scored)
    plain = tmp_path / "plain.tsv"
    plain.write_text("".join("\t".join(row) + "\n" for row in triplets), encoding="utf-8")
    same = ["--model", str(tiny_bert), "--epochs", "1", "--batch_size", "20", "--output_dir"]
    dev = ["--valid_data", str(tmp_path / "s.jsonl"), "--valid_columns", "하나", "둘", "점수"]
    mine = ["--train_data", str(tmp_path / "t.csv.gz"), "--columns", "질문", "좋음", "나쁨"]
    train.main([*mine, *dev, *same, str(tmp_path / "a")])
    train.main(["--train_data", str(plain), *dev, *same, str(tmp_path / "b")])
    a, b = (load_encoder(tmp_path / name).state_dict() for name in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)
    capsys.readouterr()
    evaluate.main(["--model", str(tmp_path / "a"), "--test_data", dev[1], "--columns", "하나", "둘", "점수"])
    assert capsys.readouterr().out.count("\n") == 3
    corpus = ["--corpus", str(tmp_path / "t.csv.gz"), "--columns", "좋음"]
    SemanticSearch.main(["--model", str(tmp_path / "a"), *corpus, "--query", triplets[7][1]])
    assert f"{triplets[7][1]} (Score: 1.0000)" in capsys.readouterr().out


def test_kornlu_is_found_by_default(tiny_bert, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "KorNLU"
    nli = ["sentence1\tsentence2\tgold_label"]
    for line in (SAMPLE / "train_nli.tsv").read_text(encoding="utf-8").splitlines()[:40]:
        premise, entailment, contradiction = line.split("\t")
        nli += [f"{premise}\t{entailment}\tentailment", f"{premise}\t{contradiction}\tcontradiction"]
    for name, lines in zip(download.KORNLI_TRAIN, (nli[:41], nli[:1] + nli[41:])):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("\n".join(lines), encoding="utf-8")
    (folder / "KorSTS").mkdir()
    for name in (download.KORSTS_DEV, download.KORSTS_TEST):
        (folder / name).write_bytes(VALID.read_bytes())
    monkeypatch.setattr(download, "FOLDER", folder)
    monkeypatch.chdir(tmp_path)
    train.main(["--model", str(tiny_bert), "--epochs", "1"])
    assert "train: 40 for simcse; 120 sentences; dev: 200 pairs" in capsys.readouterr().err
    evaluate.main([])
    assert capsys.readouterr().out.count("\n") == 3


def test_data_benchmark(capsys, monkeypatch):
    pytest.importorskip("datasets", reason="the peer side needs datasets, requirements-extra.txt")
    from benchmarks import data

    monkeypatch.setattr(data.subprocess, "run", in_this_process)
    data.main(["--rows", "600", "--runs", "1"])
    out = capsys.readouterr().out
    (ours,) = set(re.findall(r"triplets (\d+)", out))  # both sides pair the same number
    assert 100 < int(ours) < 250 and "pandas + datasets.map / ours" in out


@pytest.mark.parametrize("side", ["ours", "reference", "sentence-transformers"])
def test_throughput_benchmark(side, capsys):
    from benchmarks import train_throughput

    flags = ["--train_data", str(SAMPLE / "train_nli.tsv"), "--models", "mini:4", "--steps", "1", "--device", "cpu"]
    train_throughput.main([*flags, "--side", side, "--precision", "fp32"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["rate"] > 0 and result["flops"] > 0
    assert side == "sentence-transformers" or 0 < result["loss"] < 10


def test_useful_flops_against_a_count_by_hand():
    """Two layers of 4 x 8, sentences of 3 and 1 tokens."""
    from benchmarks.train_throughput import useful_flops

    matrices = 4 * (4 * 4) + 2 * (4 * 8)  # weights of a layer
    first = 4 * 2 * matrices + 2 * 2 * (3 * 3 + 1 * 1) * 4
    last = 4 * 2 * (2 * 4 * 4) + 2 * 2 * (matrices - 2 * 4 * 4) + 2 * 2 * (3 + 1) * 4
    config = SimpleNamespace(hidden_size=4, intermediate_size=8, num_hidden_layers=2)
    assert useful_flops(config, np.array([3.0, 1.0])) == 3 * (first + last)


def in_this_process(command, **_):
    """In the place of subprocess.run, for one of our modules: its start takes longer than its work."""
    output, errors, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            importlib.import_module(command[2]).main(command[3:])
        except SystemExit as exit:
            code = exit.code
    return SimpleNamespace(returncode=code, stdout=output.getvalue(), stderr=errors.getvalue())


def test_memory_benchmark(capsys, fails, monkeypatch):
    from benchmarks import memory

    monkeypatch.setattr(memory.subprocess, "run", in_this_process)
    monkeypatch.setattr(memory.resource, "setrlimit", lambda *limits: None)
    argv = ["--train_data", str(SAMPLE / "train_nli.tsv"), "--batch_sizes", "4", "--device", "cpu"]
    memory.main(argv)
    row = capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")
    assert row[0] == "4" and float(row[1].replace(",", "")) > 100 and float(row[4]) >= 0
    assert "line 1: label" in fails(memory.main, ["--train_data", TEST, *argv[2:]], 1)


@pytest.mark.parametrize("folder", ["data", "model", "recipes", "recipes/mini", "benchmarks"])
def test_every_module_can_be_imported(folder):
    for file in sorted((ROOT / folder).glob("*.py")):
        importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))


def test_output_dir_is_a_file(fails, tmp_path, tiny_bert):
    (tmp_path / "file").write_text("mine")
    argv = [*train_with(model=tiny_bert), "--output_dir", tmp_path / "file"]
    assert "is a file; name a folder" in fails(train.main, argv)
    assert (tmp_path / "file").read_text() == "mine"


def test_unreachable_hub_is_a_run_time_failure(fails, tmp_path):
    argv = [*train_with(model="skt/kobert-base-v1"), "--output_dir", tmp_path / "output"]
    assert "the Hugging Face hub cannot be reached" in fails(train.main, argv, code=1)


def test_full_disk_keeps_the_best_checkpoint(tiny_bert, tmp_path, fails):
    """A file size limit stands in for a full disk; the run stops with a sentence and the old model loads."""
    output = tmp_path / "run"
    flags = ["--model", str(tiny_bert), "--train_data", str(SAMPLE / "train_nli.tsv"), "--valid_data", str(VALID)]
    train.main([*flags, "--epochs", "1", "--batch_size", "200", "--output_dir", str(output)])
    before = load_encoder(output / "nli_checkpoint.pt").state_dict()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
        message = fails(train.main, [*flags, "--output_dir", output, "--seed", "5"], 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert re.search(r"error: .*(could not be written|File too large)", message)
    after = load_encoder(output / "previous-1").state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_help_shows_the_reference_setting_as_defaults():
    text = io.StringIO()
    with contextlib.redirect_stdout(text), pytest.raises(SystemExit):
        train.main(["--help"])
    defaults = vars(train.parse_flags(["--train_data", "a", "--valid_data", "b"]))
    reference = {
        **{"model": "skt/kobert-base-v1", "batch_size": 256, "epochs": 3, "eval_steps": 250},
        **{"lr": 1e-4, "warmup_ratio": 0.05, "temperature": 0.05, "dropout": 0.1, "weight_decay": 0.0},
        **{"seed": 1234, "output_dir": "output", "select_by": "cosine_spearman"},
    }
    assert {name: defaults[name] for name in reference} == reference
    for name in defaults:
        assert f"--{name}" in text.getvalue()
    help_text = " ".join(text.getvalue().split())
    assert "else pooler)" in help_text and "else 50)" in help_text


@pytest.mark.parametrize("length", [10, 1_000_000])  # written at the end, and while it is printed
def test_a_reader_that_has_seen_enough_is_no_error(length):
    reading, writing = os.pipe()
    os.close(reading)
    script = (
        "from data.errors import one_sentence_errors; "
        f"main = one_sentence_errors(lambda argv: print('x' * {length})); main()"
    )
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (found.returncode, found.stderr) == (141, b"")


def test_what_is_imported_is_frozen_in_scripts_alone():
    script = (
        "import gc; from data.errors import one_sentence_errors; "
        "main = one_sentence_errors(lambda argv: gc.get_freeze_count()); print(main([]), main() > 1000)"
    )
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout == "0 True\n"


def test_run_example_refuses_what_it_does_not_know():
    for argument, message in [("other", "unknown argument 'other'"), ("kobert", "bash run_example.sh download")]:
        command = ["bash", str(ROOT / "run_example.sh"), argument, "/no/such/folder"]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 2 and message in result.stderr


def test_nli_accuracy_benchmark(tiny_bert, tmp_path, capsys):
    """Labels that the hypothesis gives away are learned with the hypothesis alone, in more steps than one."""
    from benchmarks import nli_accuracy

    words = {"entailment": "그렇다", "neutral": "모른다", "contradiction": "아니다"}
    rows = [(f"문장 {i}", f"{i % 7} {word}", label) for i in range(64) for label, word in words.items()]
    file = tmp_path / "nli.tsv"
    lines = ["sentence1\tsentence2\tgold_label", *map("\t".join, rows)]
    file.write_text("\n".join(lines), encoding="utf-8")
    flags = ["--model", str(tiny_bert), "--train_data", *[str(file)] * 10, "--test_data", str(file), "--lr", "3e-3"]
    nli_accuracy.main([*flags, "--seeds", "1"])
    first, *accuracies = capsys.readouterr().out.splitlines()
    assert first.startswith("1,920 rows to train on, 192 to test on")
    assert [float(line.split(": ")[1].split()[0]) for line in accuracies] == [100.0, 100.0]
