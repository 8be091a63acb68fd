"""Triplets a second, useful FLOP/s and peak memory of a training step, beside two peers, in one run.

    python -m benchmarks.train_throughput --train_data triplets.tsv
    python -m benchmarks.train_throughput --train_data triplets.tsv --models base:256 --device cuda

All sides train the same random weights on the same batches with the same loss, dropout and fused or plain AdamW:

  ours                   the step of train.py
  reference              KoSimCSE's procedure written plainly: every sentence padded to 50 tokens, a pass each for
                         premises, entailments and contradictions
  sentence-transformers  its trainer with MultipleNegativesRankingLoss, [CLS] and a tanh layer as pooling; batches come
                         from its own data loader, tokenised as it does that

Each side runs in a process of its own, in turn, several times; what is compared is the ratio of each pair of runs.
Useful FLOPs are those that real tokens need, 2 a weight forward and 4 backward, attention included; the last layer, of
which only [CLS] is pooled, counts keys and values of all tokens and the rest for [CLS] alone. They are set against what
this machine reaches in a large matrix product of the same precision, measured in the same run.
"""

import argparse
import functools
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import BertConfig, BertModel

from data import flags
from data.errors import RunError, UserError, one_sentence_errors
from data.files import require_files
from data.nli import read_triplets
from data.tokenize import cached_tokens
from model.checkpoint import load_encoder
from model.encoder import SentenceEncoder
from model.losses import contrastive_loss
from model.microbatch import Encode, default_micro_batch_tokens
from model.objectives import SimCSE
from model.progress import peak_memory
from model.trainer import parameter_groups
from model.utils import default_device, resolve_precision

MAX_LEN = 50
SIDES = ("ours", "reference", "sentence-transformers")
REFERENCE_TRIPLETS, REFERENCE_EPOCHS = 277_811, 3  # KoSimCSE-BERT's training on KorNLI


def make_encoder(model):
    """(encoder with pooler, batches' triplets) of a `--models` item such as mini:128 or base:32."""
    name, batch_size = model.split(":")
    torch.manual_seed(0)
    encoder = load_encoder("mini", "pooler", MAX_LEN, random_weights=True)
    if name == "base":  # BERT-base, with mini's vocabulary
        encoder = SentenceEncoder(BertModel(BertConfig(vocab_size=len(encoder.tokenizer))), encoder.tokenizer)
    return encoder.train(), int(batch_size)


def useful_flops(config, lengths):
    """FLOPs of forward and backward for sentences of these lengths; see the module's docstring."""
    hidden, inner = config.hidden_size, config.intermediate_size
    layer = 2 * (4 * hidden**2 + 2 * hidden * inner)  # a token's, forward
    attention = 4 * hidden * lengths  # a token's: scores, and the sum of values
    full = (config.num_hidden_layers - 1) * (lengths * (layer + attention)).sum()
    last = (lengths * 2 * 2 * hidden**2 + (layer - 2 * 2 * hidden**2) + attention).sum()
    return 3 * (full + last)


def time_steps(step, batches, args):
    """Seconds of the steps on `batches`, the first that warm up apart, and the last loss."""
    for i, batch in enumerate(batches):
        if i == args.warm_up:
            synchronize(args.device)
            began = time.perf_counter()
        loss = step(batch)
    loss = loss.item()  # waits
    return time.perf_counter() - began, loss


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def ours(encoder, sentences, batches, args):
    tokens = cached_tokens(sentences, encoder.tokenizer, MAX_LEN)
    optimizer = torch.optim.AdamW(parameter_groups(encoder, 0.0), lr=1e-4, fused=True)
    if args.compile:
        encoder.compile(dynamic=True)

    encode = Encode(encoder, tokens, args.micro_batch_tokens, precision=args.precision)
    objective = SimCSE([encoder.dim], temperature=0.05)

    def step(batch):
        loss = objective(encode, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return time_steps(step, batches, args)


def reference(encoder, sentences, batches, args):
    bert = BertModel(encoder.bert.config).to(args.device)  # transformers' own modules, the same weights
    bert.load_state_dict(encoder.bert.state_dict(), assign=True)
    optimizer = torch.optim.AdamW(bert.parameters(), lr=1e-4)
    tokenize = functools.partial(
        encoder.tokenizer, padding="max_length", truncation=True, max_length=MAX_LEN, return_tensors="pt"
    )
    # tokenised before the clock starts, as the original's data set does
    inputs = [[tokenize([sentences[i] for i in column]).to(args.device) for column in batch.T] for batch in batches]

    def step(columns):
        with torch.autocast(args.device.type, torch.bfloat16, enabled=args.precision == "bf16"):
            pooled = [bert(x["input_ids"], attention_mask=x["attention_mask"]).pooler_output for x in columns]
        loss = contrastive_loss(*pooled[:2], pooled[2:], 0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return time_steps(step, inputs, args)


def sentence_transformers(encoder, sentences, batches, args):
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, losses, models
    from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_begin(self, arguments, state, control, **kwargs):
            if state.global_step == args.warm_up:
                synchronize(args.device)
                self.began = time.perf_counter()

        def on_train_end(self, arguments, state, control, **kwargs):
            synchronize(args.device)
            self.seconds = time.perf_counter() - self.began

    hidden = encoder.dim
    with tempfile.TemporaryDirectory() as folder:
        encoder.bert.save_pretrained(folder)
        encoder.tokenizer.save_pretrained(folder)
        transformer = models.Transformer(folder, max_seq_length=MAX_LEN)
        pooler = models.Dense(hidden, hidden, activation_function=torch.nn.Tanh())
        model = SentenceTransformer(
            modules=[transformer, models.Pooling(hidden, pooling_mode="cls"), pooler], device=str(args.device)
        )
        rows = np.concatenate(batches)
        columns = {
            name: [sentences[i] for i in rows[:, k]] for k, name in enumerate(("anchor", "positive", "negative"))
        }
        clock = Clock()
        SentenceTransformerTrainer(
            model=model,
            args=Arguments(
                output_dir=folder,
                max_steps=len(batches),
                per_device_train_batch_size=len(batches[0]),
                learning_rate=1e-4,
                max_grad_norm=0.0,
                bf16=args.precision == "bf16",
                use_cpu=args.device.type == "cpu",
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict(columns),
            loss=losses.MultipleNegativesRankingLoss(model, scale=20.0),
            callbacks=[clock],
        ).train()
    return clock.seconds, math.nan


def run_side(args):
    """One process's work; prints JSON."""
    (model,) = args.models
    encoder, batch_size = make_encoder(model)
    encoder.to(args.device)
    sentences, examples = read_triplets(args.train_data)
    steps = args.warm_up + args.steps
    if steps * batch_size > len(examples):  # go round: this is about speed
        examples = np.resize(examples, (steps * batch_size, 3))
    order = np.random.default_rng(0).permutation(len(examples))[: steps * batch_size]
    batches = np.split(examples[order], steps)
    if args.profile:
        return profile(encoder, sentences, batches, args)
    function = {"ours": ours, "reference": reference, "sentence-transformers": sentence_transformers}[args.side]
    seconds, loss = function(encoder, sentences, batches, args)
    lengths = cached_tokens(sentences, encoder.tokenizer, MAX_LEN).lengths[np.concatenate(batches[args.warm_up :])]
    result = {
        "rate": args.steps * batch_size / seconds,
        "flops": float(useful_flops(encoder.bert.config, lengths.astype(np.float64))) / seconds,
        "megabytes": peak_memory(args.device)[0],
        "loss": loss,
    }
    print(json.dumps(result))


def profile(encoder, sentences, batches, args):
    """Where our step's time goes, by PyTorch's profiler."""
    with torch.profiler.profile() as profiler:
        ours(encoder, sentences, batches, args)
    averages = sorted(profiler.key_averages(), key=lambda row: -row.self_device_time_total - row.self_cpu_time_total)
    total = sum(row.self_device_time_total + row.self_cpu_time_total for row in averages)
    for row in averages[:16]:
        share = (row.self_device_time_total + row.self_cpu_time_total) / total
        print(f"  {row.key:45} {100 * share:5.1f}%  {row.count:7,} calls")


def gemm_rate(precision, device):
    """FLOP/s of a product of two 2048 x 2048 (GPU: 8192) matrices, the best of ten."""
    n = 8192 if device.type == "cuda" else 2048
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    best = math.inf
    for _ in range(10):
        synchronize(device)
        began = time.perf_counter()
        F.linear(a, a)
        synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best


def middle(values, form=".2f"):
    """median (min to max)."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


@one_sentence_errors
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--train_data", nargs="+", required=True, metavar="FILE")
    add("--models", nargs="+", default=["mini:128", "base:32"], metavar="MODEL:BATCH", help="mini or base")
    add("--device", type=flags.device, default=default_device())
    add("--micro_batch_tokens", type=flags.positive_int)
    add("--steps", type=flags.positive_int, default=4)
    add("--warm_up", type=flags.positive_int, default=2, help="steps before, not counted (GPU: ours records graphs)")
    add("--rounds", type=flags.positive_int, default=3)
    add("--compile", action="store_true", help="ours with torch.compile")
    add("--profile", action="store_true", help="only say where our step's time goes")
    add("--side", choices=SIDES, help="one alone, in this process; prints JSON")
    add("--precision", choices=("fp32", "bf16"), help="of --side; else the only one to compare in")
    args = parser.parse_args(argv)
    require_files(args.train_data)
    args.micro_batch_tokens = args.micro_batch_tokens or default_micro_batch_tokens(args.device)
    if not all(re.fullmatch(r"(mini|base):[1-9][0-9]*", model) for model in args.models):
        raise UserError("--models: expected mini:BATCH or base:BATCH")
    if args.side:
        return run_side(args)

    own_flags = sys.argv[1:] if argv is None else list(argv)
    both = sorted({"fp32", resolve_precision("auto", args.device)}, reverse=True)
    precisions = [args.precision] if args.precision else both

    def run(model, precision, side):
        command = [sys.executable, "-m", "benchmarks.train_throughput", *own_flags, "--models", model]
        command += ["--precision", precision, "--side", side]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if result.returncode:
            raise RunError(f"the side {side!r} failed")
        return result.stdout

    print(f"{args.device.type}, {torch.get_num_threads()} threads, torch {torch.__version__}; median (min to max)")
    for model in args.models:
        if args.profile:
            for precision in precisions:
                print(f"{model} {precision}: share of the time our step spends in each operation itself")
                print(run(model, precision, "ours"), end="")
            continue
        gemm = {precision: [] for precision in precisions}
        results = {(precision, side): [] for precision in precisions for side in SIDES}
        for _ in tqdm(range(args.rounds), desc=model, disable=None):
            for precision in precisions:
                gemm[precision].append(gemm_rate(precision, args.device))
            for (precision, side), runs in results.items():
                runs.append(json.loads(run(model, precision, side).splitlines()[-1]))
        report(model, results, gemm, precisions)


def report(model, results, gemm, precisions):
    for precision in precisions:
        print(f"{model} {precision}")
        for side in SIDES:
            runs = results[precision, side]
            rates, memory = [run["rate"] for run in runs], max(run["megabytes"] for run in runs)
            print(f"  {side:21} {middle(rates, '.1f')} triplets/s, peak memory {memory:,.0f} MB")
        mine = results[precision, "ours"]
        for side in SIDES[1:]:
            ratios = [a["rate"] / b["rate"] for a, b in zip(mine, results[precision, side])]
            print(f"  ours / {side}: {middle(ratios)}")
        if precision != "fp32" and "fp32" in precisions:
            ratios = [a["rate"] / b["rate"] for a, b in zip(mine, results["fp32", "reference"])]
            print(f"  ours / reference in fp32: {middle(ratios)}")
        shares = [100 * run["flops"] / rate for run, rate in zip(mine, gemm[precision])]
        speed, peak = (statistics.median(x) / 1e9 for x in ([run["flops"] for run in mine], gemm[precision]))
        print(f"  useful GFLOP/s of ours {speed:,.0f}, of a matrix product {peak:,.0f}; share {middle(shares, '.0f')}%")
        seconds = REFERENCE_EPOCHS * REFERENCE_TRIPLETS / statistics.median(run["rate"] for run in mine)
        print(f"  {REFERENCE_EPOCHS} epochs of {REFERENCE_TRIPLETS:,} triplets at ours: {seconds:,.0f} s")


if __name__ == "__main__":
    main()
