"""Recipes: every one resolves, and starts and ends on a tiny model with data that is here."""

import json
import re
import runpy
import shlex
import signal
import sys
from pathlib import Path

import pytest

import train
from data.files import read_json
from recipes.__main__ import RECIPES, fill, main, parse_flags, read_recipe, stages_of
from tests.conftest import ROOT, SAMPLE, stop_at

NAMES = (
    *("kosbert-skt", "kosbert", "kosroberta", "kosentencebart", "kosentencet5", "kosimcse-bert-skt", "kosimcse-bert"),
    *("kosimcse-roberta", "kosimcse-bert-multitask", "kosimcse-roberta-multitask", "kosimcse-unsup-bert"),
    "kosimcse-unsup-roberta",
)


@pytest.fixture
def data(tmp_path, few_pairs):
    """Flags that name data made from the sample."""
    triplets = [line.split("\t") for line in (SAMPLE / "train_nli.tsv").read_text(encoding="utf-8").splitlines()][:60]
    nli, sentences = tmp_path / "nli.tsv", tmp_path / "sentences.txt"
    rows = [f"{a}\t{p}\tentailment\n{a}\t{n}\tcontradiction\n" for a, p, n in triplets]
    nli.write_text("sentence1\tsentence2\tgold_label\n" + "".join(rows), encoding="utf-8")
    sentences.write_text("".join(f"{row[0]}\n" for row in triplets), encoding="utf-8")
    flags = ["--nli", nli, "--snli", nli, "--sentences", sentences]
    for name in ("--sts_train", "--sts_dev", "--sts_test"):
        flags += [name, few_pairs]
    return list(map(str, flags))


def test_every_row_has_its_recipe():
    assert set(RECIPES) == set(NAMES)
    table = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(re.search(f"`{name}[` ]", table) for name in NAMES)


# what is public: lr, batches and epochs of the stages, and more
PUBLIC = {
    "kosbert-skt": "--batch_size 16 --epochs 1 --batch_size 16 --epochs 4 --warmup_ratio 0.1",
    "kosbert": "--batch_size 32 --epochs 1 --batch_size 32 --epochs 4 --warmup_ratio 0.1",
    "kosroberta": "--batch_size 32 --epochs 2 --batch_size 32 --epochs 4 --warmup_ratio 0.1",
    "kosentencet5": "--batch_size 64 --max_len 110 --lr 1e-4 --epochs 2 --warmup_ratio 0.01 --weight_decay 0.1",
    "kosimcse-bert-skt": "--epochs 3 --batch_size 256 --temperature 0.05 --lr 1e-4 --warmup_ratio 0.05 --max_len 50",
    "kosimcse-bert": "--pooling cls --epochs 2 --lr 1e-4 --weight_decay 0.1 --seed 12 --warmup_ratio 0.1",
    "kosimcse-roberta": "--pooling cls --epochs 2 --lr 1e-4 --weight_decay 0.1 --seed 12",
    "kosimcse-bert-multitask": "--mix alternate --epochs 5 --max_len 128 --pooling mean --warmup_ratio 0.1",
    "kosimcse-roberta-multitask": "--mix alternate --epochs 5 --max_len 128 --pooling mean --warmup_ratio 0.1",
}


@pytest.mark.parametrize("name", PUBLIC)
def test_recipes_hold_what_is_public(name):
    words = [word for _, stage in read_recipe(RECIPES[name]) for word in stage]
    settings, public = list(zip(words, words[1:])), PUBLIC[name].split()
    for setting in zip(public[::2], public[1::2]):
        settings.remove(setting)  # ValueError where it is not there, or not in as many stages


@pytest.mark.parametrize("name", NAMES)
def test_recipes_resolve(name, capsys):
    """Every value of the file is the setting that a dry run prints; every file names its hub id and its sources."""
    main([name, "--dry_run", "--sentences", "wiki.txt"])
    out = capsys.readouterr().out
    for _, words in read_recipe(RECIPES[name]):
        for flag, value in zip(words, words[1:]):
            if flag.startswith("--") and re.fullmatch(r"[0-9.e-]+", value):
                shown = re.findall(rf"^  {flag} (\S+)$", out, re.MULTILINE)
                assert float(value) in map(float, shown), flag
    text = RECIPES[name].read_text(encoding="utf-8")
    assert re.search(r"^--model (klue|skt|gogamza|KETI-AIR)/", text, re.MULTILINE)
    assert "Reported" in text or "unsup" in name
    assert "Sources:" in text or "is public" in text or "not public" in text


@pytest.mark.parametrize("name", NAMES)
def test_recipes_run_on_a_tiny_model(name, data, tiny_bert, tmp_path, capsys):
    output = tmp_path / "output"
    more = ["--max_steps", "1", "--eval_steps", "1", "--max_len", "50"]
    main([name, "--model", str(tiny_bert), "--output_dir", str(output), *data, "--", *more])
    stages = [stage for stage, _ in read_recipe(RECIPES[name])]
    assert all((output / stage / "nli_checkpoint.pt").is_file() for stage in stages)
    (scores,) = read_json(output / "scores.json", kind=list)
    assert scores["model"] == str(output / stages[-1]) and scores["rows"] == 40
    if len(stages) == 2:
        config = read_json(output / "sts" / "train_config.json")
        assert config["flags"]["model"] == str(output / "nli") and config["tasks"][0]["objective"] == "sts"


def test_several_seeds_are_summed_up(data, tiny_bert, tmp_path, capsys):
    argv = ["kosimcse-bert", "--model", str(tiny_bert), "--output_dir", str(tmp_path / "o"), "--seeds", "1", "2", "3"]
    main([*argv, *data, "--", "--max_steps", "4", "--lr", "1e-3", "--select_by", "last"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    found = json.loads((tmp_path / "o" / "scores.json").read_text())
    scores = [run["avg"] for run in found["runs"]]
    assert len(set(scores)) == 3
    assert (found["min"]["avg"], found["max"]["avg"]) == (min(scores), max(scores))
    assert found["mean"]["avg"] == pytest.approx(sum(scores) / 3)
    assert rows[-2][0] == "| mean" and rows[-2][1] == f"{found['mean']['avg']:.2f}"


def test_what_stands_behind_the_dashes_is_for_the_scoring_too(fails, data, tiny_bert, tmp_path, monkeypatch):
    (tmp_path / "cp949").mkdir()
    for file in {Path(word) for word in data if not word.startswith("--")}:
        (tmp_path / "cp949" / file.name).write_text(file.read_text(encoding="utf-8"), encoding="cp949")
    data = [word if word.startswith("--") else str(tmp_path / "cp949" / Path(word).name) for word in data]
    argv = ["kosimcse-bert", "--model", str(tiny_bert), "--output_dir", str(tmp_path / "o"), *data]
    main([*argv, "--", "--max_steps", "1", "--batch_size", "8", "--encoding", "cp949"])
    assert read_json(tmp_path / "o" / "scores.json", kind=list)[0]["rows"] == 40
    monkeypatch.setattr("train.main", lambda argv: pytest.fail("trained"))
    assert "not valid utf-8" in fails(main, argv)  # before anything begins


def test_placeholders():
    values = {"nli": ["a", "b"], "previous": ["run"]}
    assert fill(["--train_data", "{nli}", "simcse:1:8:{nli}"], values) == ["--train_data", "a", "b", "simcse:1:8:a,b"]


@pytest.mark.parametrize("words", [["--valid_data", "x.tsv"], ["--model=mini"], ["--task", "sts:1:8:x.tsv"]])
def test_what_a_recipe_sets_is_not_set_behind_the_dashes(words, fails):
    assert f"{words[0]} behind --" in fails(main, ["kosimcse-bert", "--dry_run", "--", *words])


def test_a_stopped_recipe_says_how_to_go_on_and_does(data, tiny_bert, tmp_path, capsys, monkeypatch):
    """As by `python -m recipes`; scores of an earlier call stay."""
    output = tmp_path / "output"
    argv = ["kosbert", "--model", str(tiny_bert), "--output_dir", str(output), *data]
    argv += ["--", "--max_steps", "4", "--eval_steps", "4", "--batch_size", "4", "--max_len", "50"]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["recipes", *argv])
        patch.setattr(sys, "orig_argv", ["python", "-m", "recipes", *argv])
        stop_at(2, patch, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(SystemExit) as exit_info:
            runpy.run_module("recipes", run_name="__main__", alter_sys=True)
    last = capsys.readouterr().err.splitlines()[-1]
    assert exit_info.value.code == 143, last
    advice = shlex.split(last.split("go on with: python ")[1])
    assert advice[:3] == ["-m", "recipes", "kosbert"] and advice[-1] == "--resume"
    (output / "scores.json").write_text("mine")
    main(advice[2:])
    assert "going on after step 2" in capsys.readouterr().err
    assert (output / "scores-1.json").read_text() == "mine" and read_json(output / "scores.json", kind=list)


def test_a_stage_does_not_go_on_from_another_start(data, tiny_bert, tmp_path, capsys):
    """The first stage is trained anew, with another seed; what the second one did before came from the old one."""
    argv = ["kosbert", "--model", str(tiny_bert), "--output_dir", str(tmp_path / "o"), *data]
    more = ["--", "--max_steps", "1", "--max_len", "50", "--select_by", "last", "--lr", "1e-3"]
    main([*argv, *more])
    main([*argv, "--resume", *more])
    assert capsys.readouterr().err.count("going on after step 1") == 2
    train.main(stages_of(parse_flags([*argv, *more, "--batch_size", "8"]), None)[0][1])
    main([*argv, "--resume", *more, "--batch_size", "8"])
    assert capsys.readouterr().err.count("going on after step 1") == 1
    assert (tmp_path / "o" / "sts" / "previous-1").is_dir()


def test_what_is_missing_is_named(fails, data, tmp_path):
    assert "--sentences FILE" in fails(main, ["kosimcse-unsup-bert", "--kornlu", tmp_path])
    message = fails(main, ["kosbert", "--kornlu", tmp_path])
    assert message.startswith("recipes: error: ") and "KorSTS/sts-test.tsv: no such file" in message
    argv = ["kosbert", *data, "--sts_train", tmp_path / "nowhere.tsv", "--output_dir", tmp_path / "o"]
    assert "nowhere.tsv: no such file" in fails(main, argv)  # of the second stage, before the first one
    assert not (tmp_path / "o").exists()
    two = ["--sts_test", SAMPLE / "test_sts.tsv", SAMPLE / "valid_sts.tsv", "--seeds", "1", "2"]
    assert "name one with --sts_test" in fails(main, ["kosbert", *data, *two])


def test_torchrun_is_for_train_alone(fails, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert "give torchrun the train.py commands that --dry_run prints" in fails(main, ["kosbert"])
