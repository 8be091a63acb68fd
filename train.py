"""Train a Korean sentence encoder: by supervised SimCSE on NLI triplets, or by other objectives and mixes of them.

    python train.py --train_data KorNLI/{snli_1.0,multinli}*.tsv --valid_data KorSTS/sts-dev.tsv
    python train.py --model mini --train_data mine.tsv --valid_data data/sample/valid_sts.tsv
    torchrun --standalone --nproc_per_node 8 train.py ...      # the same step on 8 GPUs (or processes of a CPU)
    python train.py ... --resume                  # after a crash, a kill, a power cut

The defaults are KoSimCSE-BERT's reference setting. Everything goes into --output_dir; see README.md.
"""

import argparse
import functools
import importlib.util
import platform
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

from data import flags
from data.download import KORNLI_TRAIN, KORSTS_DEV, default_files
from data.dropped import Dropped
from data.errors import UserError, one_sentence_errors
from data.files import require_files, sha256
from data.nli import PAIRINGS
from data.sts import read_sts
from data.tasks import KINDS, read_examples
from data.tokenize import cached_tokens
from model import distributed
from model.checkpoint import load_encoder
from model.metrics import CORRELATIONS, evaluate_sts
from model.microbatch import Encode, default_micro_batch_tokens
from model.objectives import OBJECTIVES, make_objective
from model.pooling import POOLINGS
from model.progress import peak_memory
from model.run_folder import RunFolder, check_run_folder, only_writer
from model.trainer import MIXES, Task, train
from model.utils import default_device, resolve_precision

SELECTABLE = ("avg", *CORRELATIONS, "last")
# flags that leave the result as it is, or that count by what they come to (tasks, content of data, precision, device)
FREE_FLAGS = ("output_dir", "resume", "save_steps", "keep_states", "cache_gradients", "tensorboard") + (
    *("task", "objective", "train_data", "batch_size", "valid_data", "device", "precision"),
)


def parse_flags(argv):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=flags.HelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--model", default="skt/kobert-base-v1", help="mini, run folder, .pt, model folder or hub id to start from")
    add("--random_weights", action="store_true", help="--model's architecture and tokenizer, without what it knows")
    add("--tokenizer", help="file, folder or hub id, where the model comes without one")
    add("--pooling", choices=POOLINGS, help="token states to a vector (default: saved with the model, else pooler)")
    add("--max_len", type=flags.positive_int, help="tokens a sentence is cut at (default: saved with it, else 50)")
    add("--dropout", type=flags.fraction, default=0.1, help="every dropout of the backbone")
    add("--objective", choices=tuple(OBJECTIVES), help="what --train_data is for (default: simcse)")
    add("--train_data", **flags.FILES, help="of the objective's kind (default for simcse: KorNLI of data.download)")
    add(
        "--task",
        action="append",
        type=flags.task,
        metavar="NAME:WEIGHT:BATCH:FILE[,FILE]",
        help="instead of --objective, --batch_size and --train_data: one of several objectives, its loss's weight, "
        "examples in a step, data; repeatable, and an epoch is a pass over the first one's data",
    )
    add("--mix", choices=MIXES, default="sum", help="tasks: add their losses in every step, or one after the other")
    add("--valid_data", **flags.FILES, help="STS that chooses the checkpoint (default: KorSTS dev of data.download)")
    flags.add_table_flags(parser, "--train_data")
    add("--valid_columns", nargs="+", metavar="NAME", help="as --columns, of --valid_data")
    add("--pairing", choices=PAIRINGS, default="one", help="triplets from KorNLI: one a premise, or all")
    add("--batch_size", type=flags.positive_int, help="examples in a step, of all processes together (default: 256)")
    add("--epochs", type=flags.positive_int, default=3, help="passes over the examples")
    add("--max_steps", type=flags.positive_int, help="train for so many steps instead of --epochs")
    add("--lr", type=flags.positive_float, default=1e-4, help="AdamW's peak learning rate")
    add("--warmup_ratio", type=flags.fraction, default=0.05, help="share of the steps that warm up")
    add("--weight_decay", type=flags.non_negative_float, default=0.0, help="of matrices; never of biases or LayerNorm")
    add("--max_grad_norm", type=flags.positive_float, help="scale gradients of a larger norm down to it")
    add("--temperature", type=flags.positive_float, default=0.05, help="of the contrastive losses")
    add("--negatives", type=flags.non_negative_int, default=1, help="simcse: hard negatives of an example")
    add(
        "--hard_negative_weight",
        type=flags.positive_float,
        default=1.0,
        metavar="ALPHA",
        help="simcse: how often an example's own negatives count in its denominator",
    )
    add("--mask_duplicates", action="store_true", help="simcse: a row's own sentences elsewhere are no negatives of it")
    add("--matryoshka", type=flags.sizes, metavar="D,D", help="train embeddings cut at these sizes, too")
    add("--eval_steps", type=flags.positive_int, default=250, help="steps between evaluations")
    add(
        "--select_by",
        choices=SELECTABLE,
        default="cosine_spearman",
        help="what the best checkpoint has most of; last: the last is best",
    )
    add("--patience", type=flags.positive_int, help="stop after so many evaluations without a better score")
    add("--precision", choices=("fp32", "bf16", "auto"), default="auto", help="auto: bf16 where the hardware has it")
    add("--micro_batch_tokens", type=flags.positive_int, help="tokens in a forward pass (default: 8192, GPU: 65536)")
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
    if args.task and (args.objective or args.batch_size):
        parser.error("--task: names objective and batch size itself; leave --objective and --batch_size out")
    if args.patience and args.select_by == "last":
        parser.error("--patience: stops where scores rise no more; with --select_by last the last step is always best")
    args.objective, args.batch_size = args.objective or "simcse", args.batch_size or 256
    args.save_steps = args.save_steps or args.eval_steps
    args.micro_batch_tokens = args.micro_batch_tokens or default_micro_batch_tokens(args.device)
    return args


@one_sentence_errors
def main(argv=None):
    args = parse_flags(argv)
    specifications = training_tasks(args)
    args.valid_data = args.valid_data or default_files(KORSTS_DEV, flag="--valid_data")
    require_files([*training_files(specifications), *args.valid_data])
    check_run_folder(args.output_dir)
    start, output = Path(args.model).resolve(), Path(args.output_dir).resolve()
    if args.resume and args.model != "mini" and start.exists() and start.is_relative_to(output):
        raise UserError(
            f"--resume: --model {args.model} is in --output_dir, which this run writes; name another folder"
        )
    if args.matryoshka and all(name == "mlm" for name, *_ in specifications):
        raise UserError("--matryoshka: mlm trains no embeddings that could be cut; leave it out, or add another task")
    if args.cache_gradients and args.device.type == "mps":
        raise UserError("--cache_gradients: PyTorch cannot replay dropout on mps; lower --batch_size instead")
    if args.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("--tensorboard: needs one more package: pip install tensorboard")
    with distributed.processes(args.device) as args.device:
        run_training(args, specifications)


def training_tasks(args):
    """[(objective, weight, batch size, files)] from the flags.

    Raises:
        UserError: flags that contradict each other, weights that sum to nothing, no such objective.
    """
    if not args.task:
        if not args.train_data and args.objective != "simcse":
            raise UserError(f"--objective {args.objective}: name its data with --train_data")
        files = args.train_data or default_files(*KORNLI_TRAIN, flag="--train_data")
        return [(args.objective, 1.0, args.batch_size, files)]
    if args.train_data:
        raise UserError("--task and --train_data: name the data of every task inside --task")
    for name, *_ in args.task:
        if name not in OBJECTIVES:
            raise UserError(f"--task {name}: choose one of {', '.join(OBJECTIVES)}")
    if not sum(weight for _, weight, _, _ in args.task):
        raise UserError("--task: the weights sum to 0; give one of them a weight above 0")
    return args.task


def training_files(specifications):
    return [file for *_, files in specifications for file in files]


def run_training(args, specifications):
    # data first: it shows mistakes sooner than a model loads
    dropped = Dropped(skip=args.on_bad_row == "skip")
    try:
        dev = read_sts(args.valid_data, args.encoding, args.valid_columns, dropped)
    except UserError as error:
        raise UserError(str(error).replace("--columns", "--valid_columns")) from None
    index, data = {}, []  # {sentence: its number}, of all tasks
    table = (args.encoding, args.columns, args.pairing, args.negatives, args.seed)
    for name, _, _, files in specifications:
        kind = OBJECTIVES[name].reads
        try:
            data.append(read_examples(kind, files, index, dropped, *table))
        except UserError as error:
            raise UserError(f"{error} (the objective {name} reads {KINDS[kind]})") from None
        if name == "sts" and data[-1].labels.max() <= 1:
            say("sts: no score is above 1, expected 0 to 5; if yours are 0 to 1, multiply them by 5")

    torch.manual_seed(args.seed)
    encoder = load_encoder(
        *(args.model, args.pooling, args.max_len, args.tokenizer, args.dropout),
        training=True,
        dims=args.matryoshka,
        random_weights=args.random_weights,
    )
    args.pooling, args.max_len = encoder.pooling, encoder.max_len
    encoder.to(args.device)
    precision = resolve_precision(args.precision, args.device)
    if args.compile:
        encoder.compile(dynamic=True)  # lengths and numbers of sentences vary; one compilation serves all
    counts = ", ".join(f"{len(found.rows):,} for {name}" for found, (name, *_) in zip(data, specifications))
    say(f"train: {counts}; {len(index):,} sentences; dev: {len(dev.scores):,} pairs; {args.device.type} in {precision}")

    tokens = cached_tokens(list(index), encoder.tokenizer, args.max_len)
    dev_tokens = cached_tokens([*dev.sentences1, *dev.sentences2], encoder.tokenizer, args.max_len)
    encode_dev = functools.partial(encoder.encode, split=True)
    dims = sorted({*(args.matryoshka or []), encoder.dim}, reverse=True)
    choices = (dims, args.temperature, args.hard_negative_weight, args.mask_duplicates)
    tasks = [
        Task(make_objective(name, encoder, tokens, *choices), *found, batch_size, weight)
        for found, (name, weight, batch_size, _) in zip(data, specifications)
    ]

    config = describe(args, specifications, precision, tasks, len(index))
    with only_writer(args.output_dir):
        run = RunFolder(args.output_dir, config, comparable_settings, args.resume, args.keep_states, args.tensorboard)
        if distributed.rank() == 0:
            dropped.report(run.path)
        if args.resume:
            say("starting: no state to resume" if run.state is None else f"going on after step {run.state['step']}")
        best, progress = train(
            Encode(encoder, tokens, args.micro_batch_tokens, args.cache_gradients, precision),
            tasks,
            evaluate=lambda encoder: evaluate_sts(encode_dev, dev_tokens, dev.scores),
            run=run,
            settings=args,
        )
    if best["step"] == 0:
        say("no evaluation was better than the one before the first step: what is saved is the model as it started")
    shown = "cosine_spearman" if args.select_by == "last" else args.select_by
    megabytes, where = peak_memory(args.device)
    say(
        f"best: step {best['step']}, dev {shown} {best[shown]:.2f}; {progress.seconds:,.0f} s of training, "
        f"{progress.examples / progress.seconds:,.1f} examples/s, peak {where} {megabytes:,.0f} MB; saved in {run.path}"
    )


def describe(args, specifications, precision, tasks, sentences):
    """Everything that made this run, for train_config.json."""
    return {
        "flags": {name: str(value) if name == "device" else value for name, value in vars(args).items()},
        "tasks": [
            {"objective": name, "weight": weight, "batch_size": size, "files": files, "examples": len(task.rows)}
            for (name, weight, size, files), task in zip(specifications, tasks)
        ],
        "precision": precision,
        "processes": distributed.world_size(),
        "sentences": sentences,
        "data_sha256": {file: sha256(file) for file in [*training_files(specifications), *args.valid_data]},
        "versions": {
            "python": platform.python_version(),
            **{module.__name__: module.__version__ for module in (torch, transformers, np)},
        },
    }


def comparable_settings(config):
    """{name: value} of what determines the result, from what `describe` made: equal for a run and its resumption."""
    hashes = config["data_sha256"]
    tasks = [
        [task["objective"], task["weight"], task["batch_size"], *(hashes[file][:12] for file in task["files"])]
        for task in config["tasks"]
    ]
    return {
        **{f"--{name}": value for name, value in config["flags"].items() if name not in FREE_FLAGS},
        "--precision": config["precision"],
        "--device": config["flags"]["device"].split(":")[0],
        "processes": config["processes"],
        "tasks (objective, weight, batch size, SHA-256 of the data)": tasks,
        "SHA-256 of --valid_data": [hashes[file][:12] for file in config["flags"]["valid_data"]],
    }


def say(message):
    if distributed.rank() == 0:
        print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
