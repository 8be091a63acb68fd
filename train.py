"""Train a Korean sentence encoder by supervised SimCSE on NLI triplets.

    python train.py --train_data KorNLI/{snli_1.0,multinli}*.tsv --valid_data KorSTS/sts-dev.tsv
    python train.py --model mini --train_data data/sample/train_nli.tsv --valid_data data/sample/valid_sts.tsv

The defaults are KoSimCSE-BERT's reference setting. Everything goes into --output_dir; see README.md.
"""

import argparse
import functools
import hashlib
import platform
import sys
import time

import numpy as np
import torch
import transformers

from data import flags
from data.download import KORNLI_TRAIN, KORSTS_DEV, default_files
from data.dropped import Dropped
from data.errors import one_sentence_errors
from data.files import require_files
from data.nli import PAIRINGS, read_triplets
from data.sts import read_sts
from data.tokenize import cached_tokens
from model.checkpoint import load_encoder
from model.metrics import CORRELATIONS, evaluate_sts
from model.objectives import simcse
from model.pooling import POOLINGS
from model.run_folder import RunFolder, check_run_folder
from model.trainer import LOG_COLUMNS, train
from model.utils import default_device

SELECTABLE = ("avg", *CORRELATIONS)


def parse_flags(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=flags.HelpFormatter)
    add = parser.add_argument
    add("--model", default="skt/kobert-base-v1", help="mini, run folder, .pt, model folder or hub id to start from")
    add("--tokenizer", help="file, folder or hub id, where the model comes without one")
    add("--pooling", choices=POOLINGS, default="pooler", help="how token states become a sentence's vector")
    add("--max_len", type=flags.positive_int, default=50, help="tokens a sentence is cut at")
    add("--dropout", type=flags.fraction, default=0.1, help="every dropout of the backbone")
    add(
        "--train_data",
        nargs="+",
        action="extend",
        metavar="FILE",
        help="NLI files or triplet files (default: KorNLI as data.download gets it)",
    )
    add(
        "--valid_data",
        nargs="+",
        action="extend",
        metavar="FILE",
        help="STS files the best checkpoint is chosen on (default: KorSTS dev as data.download gets it)",
    )
    flags.add_table_flags(parser, "--train_data")
    add("--valid_columns", nargs="+", metavar="NAME", help="as --columns, of --valid_data")
    add("--pairing", choices=PAIRINGS, default="one", help="triplets from KorNLI: one a premise, or all")
    add("--batch_size", type=flags.positive_int, default=256, help="triplets in a step")
    add("--epochs", type=flags.positive_int, default=3, help="passes over the triplets")
    add("--lr", type=flags.positive_float, default=1e-4, help="AdamW's peak learning rate")
    add("--warmup_ratio", type=flags.fraction, default=0.05, help="share of the steps that warm up")
    add("--weight_decay", type=flags.non_negative_float, default=0.0, help="of matrices; never of biases or LayerNorm")
    add("--temperature", type=flags.positive_float, default=0.05, help="of the contrastive loss")
    add("--eval_steps", type=flags.positive_int, default=250, help="steps between evaluations")
    add("--select_by", choices=SELECTABLE, default="cosine_spearman", help="what the best checkpoint has most of")
    add("--micro_batch_tokens", type=flags.positive_int, default=2048, help="tokens in a forward pass: speed, memory")
    add("--seed", type=flags.seed, default=1234, help="of initialisation, order, dropout and pairing")
    add("--device", type=flags.device, default=default_device(), help="cpu, cuda, cuda:1, mps")
    add("--output_dir", default="output", help="the run folder")
    return parser.parse_args(argv)


@one_sentence_errors
def main(argv=None):
    args = parse_flags(argv)
    args.train_data = args.train_data or default_files(*KORNLI_TRAIN, flag="--train_data")
    args.valid_data = args.valid_data or default_files(KORSTS_DEV, flag="--valid_data")
    require_files([*args.train_data, *args.valid_data])
    check_run_folder(args.output_dir)
    torch.manual_seed(args.seed)
    encoder = load_encoder(args.model, args.pooling, args.max_len, args.tokenizer, args.dropout, training=True)
    encoder.to(args.device)

    dropped = Dropped(skip=args.on_bad_row == "skip")
    sentences, examples = read_triplets(args.train_data, args.pairing, args.seed, args.encoding, args.columns, dropped)
    dev = read_sts(args.valid_data, args.encoding, args.valid_columns, dropped)
    say(f"train: {len(examples):,} triplets of {len(sentences):,} sentences; dev: {len(dev.scores):,} pairs")

    tokens = cached_tokens(sentences, encoder.tokenizer, args.max_len)
    dev_tokens = cached_tokens([*dev.sentences1, *dev.sentences2], encoder.tokenizer, args.max_len)

    run = RunFolder(args.output_dir, describe(args, len(examples), len(sentences)), LOG_COLUMNS)
    dropped.report(run.path)
    began = time.perf_counter()
    best = train(
        encoder,
        tokens,
        examples,
        objective=functools.partial(simcse, temperature=args.temperature),
        evaluate=lambda encoder: evaluate_sts(encoder.encode, dev_tokens, dev.scores),
        run=run,
        epochs=args.epochs,
        batch_size=args.batch_size,
        lr=args.lr,
        warmup_ratio=args.warmup_ratio,
        weight_decay=args.weight_decay,
        eval_steps=args.eval_steps,
        select_by=args.select_by,
        seed=args.seed,
        micro_batch_tokens=args.micro_batch_tokens,
    )
    if best["step"] == 0:
        say("no evaluation was better than the one before the first step: what is saved is the model as it started")
    say(
        f"best: step {best['step']}, dev {args.select_by} {best[args.select_by]:.2f}, after "
        f"{time.perf_counter() - began:.0f} s of training; saved in {run.path}"
    )


def describe(args, triplets, sentences):
    """Everything that made this run, for train_config.json."""
    return {
        "flags": {name: str(value) if name == "device" else value for name, value in vars(args).items()},
        "triplets": triplets,
        "sentences": sentences,
        "data_sha256": {file: sha256(file) for file in [*args.train_data, *args.valid_data]},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
        },
    }


def sha256(file):
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def say(message):
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
