"""Kill trainings with SIGKILL at random moments, resume them until they end, and compare with one left alone.

    python -m tests.kill_resume --kills 200 --seed 1

The weights, the optimiser's state, the best checkpoint and the losses in the log must be the same to the bit: exit
code 0 if they are. Every training is forked from this process, which has everything imported: a start costs little.
"""

import argparse
import contextlib
import csv
import gc
import io
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads do not survive a fork

import torch
from sentencepiece import SentencePieceTrainer
from tqdm import tqdm
from transformers import BertConfig, BertModel

import train
from data.kobert_tokenizer import KoBERTTokenizer
from model.checkpoint import CHECKPOINT_FILE, MODEL_FOLDER
from model.run_folder import LOG_FILE, METRICS_FILE, STATES_FOLDER
from model.states import States
from tests.conftest import SAMPLE, first_lines

STEPS = 6


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        os.environ["KOSIMCSE_CACHE"] = str(folder / "cache")
        make_model(folder / "tiny")
        first_lines("train_nli.tsv", 36, folder)
        first_lines("valid_sts.tsv", 20, folder)
        with contextlib.redirect_stderr(io.StringIO()):  # what is imported at first use, forks then have
            train.main([*flags(folder, "warm"), "--max_steps", "1"])
        began = time.monotonic()
        finish(folder, os.waitpid(start(folder, "alone"), 0)[1])
        duration = time.monotonic() - began
        expected = what_is_left(folder / "alone")
        draw, kills, runs, before_first = random.Random(args.seed), 0, 0, 0
        while kills < args.kills:
            runs += 1
            run = f"run-{runs}"
            for tries in itertools.count():
                child = start(folder, run)
                time.sleep(draw.uniform(0, duration) * (1 + tries / 10))  # a slow machine gets there, too
                os.kill(child, signal.SIGKILL)  # a zombie, if it has ended meanwhile
                _, status = os.waitpid(child, 0)
                if not os.WIFSIGNALED(status):
                    finish(folder, status)
                    break
                kills += 1
                before_first += States(folder / run / STATES_FOLDER).newest() is None
            assert_same(expected, what_is_left(folder / run), run)
            shutil.rmtree(folder / run)
    print(
        f"{kills} kills, {before_first} of them before the first state, in {runs} runs of {STEPS} steps "
        f"({duration:.1f} s when left alone); every final result equals the uninterrupted one's to the bit"
    )


def make_model(folder):
    """A BERT of 2 layers x 32 with a vocabulary of 1,000 pieces, so that what is saved is small."""
    SentencePieceTrainer.train(
        input=str(SAMPLE / "train_nli.tsv"), model_prefix=str(folder), vocab_size=1000, minloglevel=2
    )
    tokenizer = KoBERTTokenizer.from_pretrained(folder.with_suffix(".model"))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer), pad_token_id=1, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def flags(folder, run):
    """Of train.py, for STEPS steps with a state every second one."""
    return [
        *("--model", str(folder / "tiny"), "--train_data", str(folder / "train_nli.tsv"), "--pooling", "mean"),
        *("--valid_data", str(folder / "valid_sts.tsv"), "--batch_size", "12", "--epochs", "2", "--lr", "1e-3"),
        *("--eval_steps", "3", "--save_steps", "2", "--output_dir", str(folder / run), "--resume"),
    ]


def start(folder, run):
    """Fork a training; its process id."""
    gc.freeze()  # a collection in the child would copy every page of the parent's objects
    child = os.fork()
    if child:
        gc.unfreeze()
        return child
    code = 70
    tqdm.set_lock(threading.RLock())  # its own is shared with forks, and stays locked by one that is killed
    try:
        log = os.open(folder / f"{run}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # pytest has its own
        train.main(flags(folder, run))
        code = 0
    except SystemExit as exit:
        code = exit.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finish(folder, status):
    """Exit with what the last training wrote if it failed."""
    if os.waitstatus_to_exitcode(status) != 0:
        logs = sorted(folder.glob("*.log"), key=lambda log: log.stat().st_mtime)
        sys.exit(f"a training failed: {logs[-1].read_text() if logs else status}")


def what_is_left(run):
    """Everything that must be equal: final state, best checkpoint, losses."""
    states = States(run / STATES_FOLDER)
    assert states.newest() == STEPS, f"{run}: the newest state is that of step {states.newest()}"
    state = states.load(STEPS)
    with (run / LOG_FILE).open(encoding="utf-8") as file:
        losses = [(row["step"], row["loss"], row["lr"], row["avg"]) for row in csv.DictReader(file)]
    best = {
        "file": torch.load(run / CHECKPOINT_FILE, weights_only=True)["model"],
        "folder": (run / MODEL_FOLDER / "model.safetensors").read_bytes(),
        "metrics": (run / METRICS_FILE).read_text(),
    }
    del state["seconds"], state["log"]  # times differ
    return {"losses": losses, "best": best, "state": state}


def assert_same(expected, found, where):
    assert type(expected) is type(found), where
    if isinstance(expected, torch.Tensor):
        assert torch.equal(expected, found), where
    elif isinstance(expected, dict):
        assert expected.keys() == found.keys(), where
        for key in expected:
            assert_same(expected[key], found[key], f"{where}, {key}")
    elif isinstance(expected, list | tuple):
        assert len(expected) == len(found), where
        for i, (a, b) in enumerate(zip(expected, found)):
            assert_same(a, b, f"{where}, {i}")
    else:
        assert expected == found, f"{where}: {expected} there, {found} here"


if __name__ == "__main__":
    main()
