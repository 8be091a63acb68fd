"""Train a Korean sentence encoder by supervised SimCSE on NLI triplets.

    python train.py --train_data KorNLI/{snli_1.0,multinli}*.tsv --valid_data KorSTS/sts-dev.tsv
    python train.py --model mini --train_data data/sample/train_nli.tsv --valid_data data/sample/valid_sts.tsv
    torchrun --standalone --nproc_per_node 8 train.py ...      # the same step on 8 GPUs (or processes of a CPU)
    python train.py ... --resume                  # after a crash, a kill, a power cut

The defaults are KoSimCSE-BERT's reference setting. Everything goes into --output_dir; see README.md.
"""

import argparse
import functools
import hashlib
import importlib.util
import platform
import sys

import numpy as np
import torch
import transformers

from data import flags
from data.download import KORNLI_TRAIN, KORSTS_DEV, default_files
from data.dropped import Dropped
from data.errors import UserError, one_sentence_errors
from data.files import require_files
from data.nli import PAIRINGS, read_triplets
from data.sts import read_sts
from data.tokenize import cached_tokens
from model import distributed
from model.checkpoint import load_encoder
from model.metrics import CORRELATIONS, evaluate_sts
from model.objectives import simcse
from model.pooling import POOLINGS
from model.progress import LOG_COLUMNS, peak_memory
from model.run_folder import RunFolder, check_run_folder
from model.trainer import train
from model.utils import default_device, resolve_precision

SELECTABLE = ("avg", *CORRELATIONS)
# flags that leave the result as it is (data counts by its content, device and precision by what they come to)
FREE_FLAGS = ("output_dir", "resume", "save_steps", "keep_states", "cache_gradients", "tensorboard") + (
    *("train_data", "valid_data", "device", "precision"),
)


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
    add("--batch_size", type=flags.positive_int, default=256, help="triplets in a step, of all processes together")
    add("--epochs", type=flags.positive_int, default=3, help="passes over the triplets")
    add("--max_steps", type=flags.positive_int, help="train for so many steps instead of --epochs")
    add("--lr", type=flags.positive_float, default=1e-4, help="AdamW's peak learning rate")
    add("--warmup_ratio", type=flags.fraction, default=0.05, help="share of the steps that warm up")
    add("--weight_decay", type=flags.non_negative_float, default=0.0, help="of matrices; never of biases or LayerNorm")
    add("--max_grad_norm", type=flags.positive_float, help="scale gradients of a larger norm down to it")
    add("--temperature", type=flags.positive_float, default=0.05, help="of the contrastive loss")
    add("--eval_steps", type=flags.positive_int, default=250, help="steps between evaluations")
    add("--select_by", choices=SELECTABLE, default="cosine_spearman", help="what the best checkpoint has most of")
    add("--patience", type=flags.positive_int, help="stop after so many evaluations without a better score")
    add("--precision", choices=("fp32", "bf16", "auto"), default="auto", help="auto: bf16 where the hardware has it")
    add("--micro_batch_tokens", type=flags.positive_int, default=8192, help="tokens in a forward pass: speed, memory")
    add("--cache_gradients", action="store_true", help="activations of one micro-batch at a time: large batches")
    add("--compile", action="store_true", help="by torch.compile")
    add("--seed", type=flags.seed, default=1234, help="of initialisation, order, dropout and pairing")
    add("--device", type=flags.device, default=default_device(), help="cpu, cuda, cuda:1, mps")
    add("--output_dir", default="output", help="the run folder")
    add("--resume", action="store_true", help="go on from the newest good state in the run folder, if there is one")
    add("--save_steps", type=flags.positive_int, help="steps between states for --resume (default: --eval_steps)")
    add("--keep_states", type=flags.positive_int, default=2, help="how many states stay")
    add("--tensorboard", action="store_true", help="write the log for TensorBoard, too")
    args = parser.parse_args(argv)
    args.save_steps = args.save_steps or args.eval_steps
    return args


@one_sentence_errors
def main(argv=None):
    args = parse_flags(argv)
    args.train_data = args.train_data or default_files(*KORNLI_TRAIN, flag="--train_data")
    args.valid_data = args.valid_data or default_files(KORSTS_DEV, flag="--valid_data")
    require_files([*args.train_data, *args.valid_data])
    check_run_folder(args.output_dir)
    if args.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("--tensorboard: needs one more package: pip install tensorboard")
    with distributed.processes(args.device) as args.device:
        run_training(args)


def run_training(args):
    torch.manual_seed(args.seed)
    encoder = load_encoder(args.model, args.pooling, args.max_len, args.tokenizer, args.dropout, training=True)
    encoder.to(args.device)
    if args.compile:
        encoder.compile(dynamic=True)  # lengths and numbers of sentences vary; one compilation serves all
    precision = resolve_precision(args.precision, args.device)

    dropped = Dropped(skip=args.on_bad_row == "skip")
    sentences, examples = read_triplets(args.train_data, args.pairing, args.seed, args.encoding, args.columns, dropped)
    dev = read_sts(args.valid_data, args.encoding, args.valid_columns, dropped)
    say(
        f"train: {len(examples):,} triplets of {len(sentences):,} sentences; dev: {len(dev.scores):,} pairs; "
        f"{args.device.type} in {precision}"
    )

    tokens = cached_tokens(sentences, encoder.tokenizer, args.max_len)
    dev_tokens = cached_tokens([*dev.sentences1, *dev.sentences2], encoder.tokenizer, args.max_len)
    encode_dev = functools.partial(encoder.encode, split=True)

    config = describe(args, precision, len(examples), len(sentences))
    run = RunFolder(
        args.output_dir, config, comparable_settings, LOG_COLUMNS, args.resume, args.keep_states, args.tensorboard
    )
    if distributed.rank() == 0:
        dropped.report(run.path)
    if args.resume:
        say("starting: no state to resume" if run.state is None else f"going on after step {run.state['step']}")
    best, progress = train(
        encoder,
        tokens,
        examples,
        objective=functools.partial(simcse, temperature=args.temperature),
        evaluate=lambda encoder: evaluate_sts(encode_dev, dev_tokens, dev.scores),
        run=run,
        epochs=args.epochs,
        max_steps=args.max_steps,
        batch_size=args.batch_size,
        lr=args.lr,
        warmup_ratio=args.warmup_ratio,
        weight_decay=args.weight_decay,
        max_grad_norm=args.max_grad_norm,
        eval_steps=args.eval_steps,
        save_steps=args.save_steps,
        patience=args.patience,
        select_by=args.select_by,
        seed=args.seed,
        micro_batch_tokens=args.micro_batch_tokens,
        cache_gradients=args.cache_gradients,
        precision=precision,
    )
    if best["step"] == 0:
        say("no evaluation was better than the one before the first step: what is saved is the model as it started")
    megabytes, where = peak_memory(args.device)
    say(
        f"best: step {best['step']}, dev {args.select_by} {best[args.select_by]:.2f}; {progress.seconds:,.0f} s of "
        f"training, {progress.rate:,.1f} triplets/s, peak {where} {megabytes:,.0f} MB; saved in {run.path}"
    )


def describe(args, precision, triplets, sentences):
    """Everything that made this run, for train_config.json."""
    return {
        "flags": {name: str(value) if name == "device" else value for name, value in vars(args).items()},
        "precision": precision,
        "processes": distributed.world_size(),
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


def comparable_settings(config):
    """{name: value} of what determines the result, from what `describe` made: equal for a run and its resumption."""
    return {
        **{f"--{name}": value for name, value in config["flags"].items() if name not in FREE_FLAGS},
        "--precision": config["precision"],
        "--device": config["flags"]["device"].split(":")[0],
        "processes": config["processes"],
        **{
            f"--{data}'s content": [config["data_sha256"][file][:12] for file in config["flags"][data]]
            for data in ("train_data", "valid_data")
        },
    }


def sha256(file):
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def say(message):
    if distributed.rank() == 0:
        print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
