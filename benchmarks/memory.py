"""Peak memory and time of a training step at growing batch sizes, with and without --cache_gradients, in one run.

    python -m benchmarks.memory --train_data triplets.tsv

Each measurement is a process of its own that makes two steps: the first allocates AdamW's moments, the second is timed.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.train_throughput import MAX_LEN, make_encoder
from data import flags
from data.errors import RunError, one_sentence_errors
from data.files import require_files
from data.nli import read_triplets
from data.tokenize import cached_tokens
from model.microbatch import Encode, default_micro_batch_tokens
from model.objectives import SimCSE
from model.progress import peak_memory
from model.trainer import parameter_groups
from model.utils import default_device, resolve_precision


def measure(args):
    """One process's work; prints JSON."""
    if args.device.type == "cpu":  # fail rather than have the kernel choose what to kill
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 9 // 10
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    encoder, batch_size = make_encoder(f"{args.model}:{args.batch_sizes[0]}")
    encoder.to(args.device)
    sentences, examples = read_triplets(args.train_data)
    tokens = cached_tokens(sentences, encoder.tokenizer, MAX_LEN)
    batches = np.resize(np.random.default_rng(0).permutation(examples), (2, batch_size, 3))
    optimizer = torch.optim.AdamW(parameter_groups(encoder, 0.0), lr=1e-4, fused=True)
    precision = resolve_precision(args.precision, args.device)

    encode = Encode(encoder, tokens, args.micro_batch_tokens, args.cached, precision)
    objective = SimCSE([encoder.dim], temperature=0.05)
    for batch in batches:
        began = time.perf_counter()
        loss = objective(encode, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss = loss.item()
    seconds = time.perf_counter() - began
    print(json.dumps({"megabytes": peak_memory(args.device)[0], "seconds": seconds, "loss": loss}))


@one_sentence_errors
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--train_data", nargs="+", required=True, metavar="FILE")
    add("--model", choices=("mini", "base"), default="mini")
    add("--batch_sizes", type=flags.positive_int, nargs="+", default=[256, 1024, 4096])
    add("--precision", choices=("fp32", "bf16", "auto"), default="auto")
    add("--micro_batch_tokens", type=flags.positive_int)
    add("--device", type=flags.device, default=default_device())
    add("--measure", choices=("plain", "cached"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    require_files(args.train_data)
    args.micro_batch_tokens = args.micro_batch_tokens or default_micro_batch_tokens(args.device)
    if args.measure:
        args.cached = args.measure == "cached"
        return measure(args)

    own_flags = sys.argv[1:] if argv is None else list(argv)
    precision = resolve_precision(args.precision, args.device)
    print(f"{args.model}, {args.device.type}, {precision}, micro-batches of {args.micro_batch_tokens:,} tokens")
    print("| batch | plain MB | plain s | --cache_gradients MB | --cache_gradients s |\n|---|---|---|---|---|")
    for batch_size in tqdm(args.batch_sizes, disable=None):
        cells = [f"{batch_size:,}"]
        for way in ("plain", "cached"):
            command = [sys.executable, "-m", "benchmarks.memory", *own_flags, "--measure", way]
            command += ["--batch_sizes", str(batch_size)]
            result = subprocess.run(command, capture_output=True, text=True)
            too_large = any(words in result.stderr for words in ("allocate memory", "out of memory", "MemoryError"))
            if result.returncode > 0 and not too_large:  # a negative one is a signal: the kernel needed the memory
                raise RunError(f"batch {batch_size}, {way}: {result.stderr.strip().splitlines()[-1]}")
            if result.returncode:
                cells += ["does not fit", ""]
            else:
                found = json.loads(result.stdout.splitlines()[-1])
                cells += [f"{found['megabytes']:,.0f}", f"{found['seconds']:.1f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
