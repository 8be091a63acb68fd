"""Triplets a second and peak memory of our training step beside the reference procedure, in one run.

    python -m benchmarks.train_throughput --train_data triplets.tsv

Both sides train `mini` from the same random weights on the same batches with the same loss, optimiser and dropout.
The reference procedure is KoSimCSE's: every sentence padded to 50 tokens, one forward pass each for premises,
entailments and contradictions. Each side runs in a process of its own, in turn, several times; what is compared is
the ratio of each pair of runs.
"""

import argparse
import functools
import json
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
import torch

from data import flags
from data.errors import RunError, UserError, one_sentence_errors
from data.files import require_files
from data.nli import read_triplets
from data.tokenize import cached_tokens
from model.checkpoint import load_encoder
from model.losses import contrastive_loss
from model.microbatch import encode_rows, pad
from model.objectives import simcse
from model.trainer import parameter_groups

MAX_LEN = 50


def ours(encoder, tokens, batch, micro_batch_tokens):
    return simcse(functools.partial(encode_rows, encoder, tokens, max_tokens=micro_batch_tokens), batch, 0.05)


def reference(encoder, tokens, batch, micro_batch_tokens):
    def encode(rows):
        input_ids, attention_mask = pad(tokens, rows, encoder.pad_id, "cpu")
        missing = (0, MAX_LEN - input_ids.shape[1])
        return encoder(
            torch.nn.functional.pad(input_ids, missing, value=encoder.pad_id),
            torch.nn.functional.pad(attention_mask, missing),
        )

    return contrastive_loss(*(encode(rows) for rows in batch.T), 0.05)


def run_side(args):
    """One process's work: time `steps` training steps after 2 that are not counted; print JSON."""
    torch.manual_seed(0)
    sentences, examples = read_triplets(args.train_data)
    needed = (args.steps + 2) * args.batch_size
    if needed > len(examples):
        raise UserError(f"--steps {args.steps}: needs {needed:,} triplets, the files have {len(examples):,}")
    encoder = load_encoder(args.model, "pooler", MAX_LEN, training=True).train()
    tokens = cached_tokens(sentences, encoder.tokenizer, MAX_LEN)
    optimizer = torch.optim.AdamW(parameter_groups(encoder, 0.0), lr=1e-4, fused=True)
    order = np.random.default_rng(0).permutation(len(examples))
    step = {"ours": ours, "reference": reference}[args.side]
    started = None
    for i in range(-2, args.steps):
        if i == 0:
            started = time.perf_counter()
        batch = examples[order[(i + 2) * args.batch_size :][: args.batch_size]]
        loss = step(encoder, tokens, batch, args.micro_batch_tokens)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - started
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"rate": args.steps * args.batch_size / seconds, "megabytes": megabytes, "loss": loss.item()}))


@one_sentence_errors
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--train_data", nargs="+", required=True, metavar="FILE")
    add("--model", default="mini")
    add("--batch_size", type=flags.positive_int, default=128)
    add("--micro_batch_tokens", type=flags.positive_int, default=2048)
    add("--steps", type=flags.positive_int, default=8)
    add("--rounds", type=flags.positive_int, default=3)
    add("--side", choices=("ours", "reference"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    require_files(args.train_data)
    if args.side:
        return run_side(args)

    own_flags = sys.argv[1:] if argv is None else list(argv)
    results = {"reference": [], "ours": []}
    for _ in range(args.rounds):
        for side, runs in results.items():
            command = [sys.executable, "-m", "benchmarks.train_throughput", *own_flags, "--side", side]
            result = subprocess.run(command, stdout=subprocess.PIPE)
            if result.returncode:
                raise RunError(f"the side {side!r} failed")
            runs.append(json.loads(result.stdout))
    print(f"{args.model}, batch {args.batch_size}, fp32, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for side, runs in results.items():
        rates = sorted(run["rate"] for run in runs)
        print(
            f"{side:10} {statistics.median(rates):7.1f} triplets/s (min {rates[0]:.1f}, max {rates[-1]:.1f}), "
            f"peak memory {max(run['megabytes'] for run in runs):,.0f} MB"
        )
    ratios = sorted(a["rate"] / b["rate"] for a, b in zip(results["ours"], results["reference"]))
    print(f"ours / reference: {statistics.median(ratios):.2f} (min {ratios[0]:.2f}, max {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
