"""From files to token ids at KorNLI's full size: time and peak memory, ours beside pandas + datasets.map, in one run.

    python -m benchmarks.data --kobert tokenizer_78b3253a26.model
    python -m benchmarks.data --kobert tokenizer_78b3253a26.model --scaling 10000 100000 1000000 10000000

The two train files are synthetic: KorNLI's row counts and rows a premise, sentences of the lengths of its XNLI and SNLI
parts, words of data/sample. Both sides read them, pair one triplet a premise and tokenise its sentences, each run in a
process of its own, in turn; what is compared is the ratio of each pair of runs. Needs pandas and datasets.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from data import flags
from data.errors import RunError, one_sentence_errors
from data.nli import read_triplets

SAMPLE = Path(__file__).parent.parent / "data" / "sample" / "train_nli.tsv"
MINI = Path(__file__).parent.parent / "model" / "mini"
FULL = 942_854  # KorNLI: 550,152 rows of SNLI and 392,702 of MNLI
MAX_LEN = 50
# characters at the deciles: MNLI as XNLI dev and test, SNLI as its first 984 rows, all of KorNLI
PARTS = {
    "snli.tsv": (550_152 / FULL, 550_152 / 150_700, [10, 18, 21, 24, 26, 29, 34, 41, 51, 55, 104])
    + ([4, 12, 14, 15, 17, 18, 20, 22, 25, 30, 72],),
    "multinli.tsv": (392_702 / FULL, 3.0, [6, 23, 31, 37, 44, 51, 59, 66, 75, 86, 124])
    + ([3, 15, 18, 21, 23, 25, 28, 31, 34, 40, 79],),
}
LABELS = ("entailment", "neutral", "contradiction")


def make_kornli(folder, rows):
    """Write PARTS with `rows` rows in all; return the paths."""
    draw = np.random.default_rng(0)
    words = sorted(set(SAMPLE.read_text(encoding="utf-8").split()))
    random.Random(0).shuffle(words)
    stream = [words[i] for i in draw.integers(len(words), size=200_000)]
    characters = sum(map(len, words)) / len(words) + 1  # a word and its blank
    paths = []
    for name, (share, rows_a_premise, premise_deciles, hypothesis_deciles) in PARTS.items():
        n = round(rows * share)
        premises = round(n / rows_a_premise)
        owner = np.sort(np.arange(n) % premises)

        def sentences(count, deciles):
            lengths = np.interp(draw.random(count), np.linspace(0, 1, 11), deciles)
            how_many = np.maximum(1, np.rint(lengths / characters)).astype(int)
            starts = draw.integers(len(stream) - 60, size=count)
            return [" ".join(stream[a : a + k]) for a, k in zip(starts.tolist(), how_many.tolist())]

        # without the number short sentences would repeat more often than in KorNLI
        texts = [f"{text} {i}" for i, text in enumerate(sentences(premises, premise_deciles))]
        hypotheses = sentences(n, hypothesis_deciles)
        paths.append(folder / name)
        with paths[-1].open("w", encoding="utf-8") as file:
            file.write("sentence1\tsentence2\tgold_label\n")
            file.writelines(
                f"{texts[p]}\t{hypothesis} {i % 100_000}\t{LABELS[i % 3]}\n"
                for i, (p, hypothesis) in enumerate(zip(owner.tolist(), hypotheses))
            )
    return paths


def ours(paths, tokenizer_name):
    from data.tokenize import cached_tokens, load_tokenizer

    tokenizer = load_tokenizer(tokenizer_name)
    began = time.perf_counter()
    sentences, examples = read_triplets(paths)
    read = time.perf_counter()
    tokens = cached_tokens(sentences, tokenizer, MAX_LEN)
    tokenised = time.perf_counter()
    cached_tokens(sentences, tokenizer, MAX_LEN)
    reopened = time.perf_counter()
    return {
        "read and pair": read - began,
        "tokenise": tokenised - read,
        "reopen": reopened - tokenised,
        "total": tokenised - began,
        "triplets": len(examples),
        "sentences": len(sentences),
        "tokens": len(tokens.ids),
    }


def peer(paths, tokenizer_name):
    import datasets
    import pandas

    from data.tokenize import load_tokenizer

    datasets.disable_progress_bars()
    tokenizer = load_tokenizer(tokenizer_name)
    began = time.perf_counter()
    rows = pandas.concat([pandas.read_csv(path, sep="\t", quoting=3, dtype=str) for path in paths]).dropna()
    rows = rows[rows.sentence1 != rows.sentence2]
    rows = rows.reset_index(drop=True)
    sides = [
        rows[rows.gold_label == label].groupby("sentence1", sort=False).sample(1, random_state=0)
        for label in ("entailment", "contradiction")
    ]
    triplets = sides[0].merge(sides[1], on="sentence1")[["sentence1", "sentence2_x", "sentence2_y"]]
    read = time.perf_counter()

    def tokenise(batch):
        return {
            f"{name}_ids": tokenizer(batch[name], truncation=True, max_length=MAX_LEN)["input_ids"]
            for name in triplets.columns
        }

    dataset = datasets.Dataset.from_pandas(triplets, preserve_index=False)
    dataset = dataset.map(tokenise, batched=True, remove_columns=list(triplets.columns), num_proc=1)
    tokenised = time.perf_counter()
    return {"read and pair": read - began, "tokenise": tokenised - read, "total": tokenised - began} | {
        "triplets": len(dataset)
    }


def run_side(side, folder, tokenizer):
    """Run one side in a process of its own, its caches empty; return its figures."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "benchmarks.data", "--side", side, str(folder), str(tokenizer)]
        environment = {**os.environ, "KOSIMCSE_CACHE": cache, "HF_HOME": cache, "TOKENIZERS_PARALLELISM": "true"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RunError(f"{side}: failed; {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def parse_flags(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--rows", type=flags.positive_int, default=FULL, help=f"of the synthetic KorNLI (default: {FULL:,})")
    add("--kobert", metavar="FILE", help="KoBERT's vocabulary file, to time its tokenizer too")
    add("--runs", type=flags.positive_int, default=3, help="of each side (default: 3)")
    add("--scaling", type=flags.positive_int, nargs="+", metavar="ROWS", help="instead: ours alone at these sizes")
    add("--side", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


@one_sentence_errors
def main(argv=None):
    args = parse_flags(argv)
    if args.side:
        side, folder, tokenizer = args.side
        figures = {"ours": ours, "peer": peer}[side]([Path(folder) / name for name in PARTS], tokenizer)
        figures["peak MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(figures))
        return
    tokenizers = {"KoBERT (sentencepiece)": args.kobert} if args.kobert else {}
    tokenizers["mini (fast tokenizer)"] = MINI
    with tempfile.TemporaryDirectory() as folder:
        if args.scaling:
            scaling(args.scaling, Path(folder), *next(iter(tokenizers.items())))
            return
        make_kornli(Path(folder), args.rows)
        for name, tokenizer in tokenizers.items():
            print(f"{args.rows:,} rows, {name}, {os.cpu_count()} cores; median (min to max) of {args.runs} runs")
            sides = {"ours": [], "peer": []}
            for _ in range(args.runs):
                for side, runs in sides.items():
                    runs.append(run_side(side, folder, tokenizer))
            for side, runs in sides.items():
                label = "ours" if side == "ours" else "pandas + datasets.map"
                print(f"  {label}: " + ", ".join(f"{key} {spread(runs, key)}" for key in runs[0]), flush=True)
            ratios = [{"ratio": theirs["total"] / mine["total"]} for mine, theirs in zip(*sides.values())]
            print(f"  total, pandas + datasets.map / ours: {spread(ratios, 'ratio')}", flush=True)


def scaling(sizes, folder, name, tokenizer):
    print(f"ours, {name}: microseconds a row and peak memory")
    for rows in sizes:
        make_kornli(folder, rows)
        figures = run_side("ours", folder, tokenizer)
        costs = ", ".join(f"{key} {figures[key] / rows * 1e6:.2f}" for key in ("read and pair", "tokenise", "reopen"))
        print(f"  {rows:>10,} rows: {costs}; {figures['peak MB']:,.0f} MB", flush=True)


def spread(runs, key):
    values = [run[key] for run in runs]
    if all(isinstance(value, int) for value in values):
        return f"{values[0]:,}"
    return f"{statistics.median(values):,.2f} ({min(values):,.2f} to {max(values):,.2f})"


if __name__ == "__main__":
    main()
