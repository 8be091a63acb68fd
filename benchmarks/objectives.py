"""Every objective on open Korean data: KorSTS dev before and after, KorSTS test once, several seeds.

    python -m benchmarks.objectives --korean FOLDER --model MODEL --seeds 1 2 3 --output_dir output/objectives

FOLDER holds triplets/ (anchor, positive, negative), KorNLU/ and KLUE/ as published and sentences/klue_nli_train.txt.
MODEL is what every training starts from, such as mini before its tuning (model/mini/README.md). A training is a
process of one thread; `--jobs` run at a time. One that ended before is not run again. The checkpoint that is best on
KorSTS dev is kept, of sbert-nli, which another stage follows, the last one.
"""

import argparse
import collections
import csv
import json
import os
import statistics
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import evaluate
from data import flags
from data.errors import RunError, one_sentence_errors
from model.run_folder import LOG_FILE, METRICS_FILE

SHARED = "--pooling mean --max_len 64 --lr 3e-4 --warmup_ratio 0.1 --max_grad_norm 1 --eval_steps 23"
TRIPLETS = " ".join(
    f"{{korean}}/triplets/{name}.tsv" for name in ("klue_nli_train", "kornli_snli_sample", "xnli_dev", "xnli_test")
)
NLI = "{korean}/KLUE/klue-nli-v1.1_train.json {korean}/KorNLU/KorNLI/snli_1.0_train_sample.ko.tsv"
NLI += " {korean}/KorNLU/KorNLI/xnli.dev.ko.tsv {korean}/KorNLU/KorNLI/xnli.test.ko.tsv"
STS = "{korean}/KorNLU/KorSTS/sts-train.tsv"
SIMCSE = f"--train_data {TRIPLETS} --batch_size 128 --epochs 1"
GRADED = f"--train_data {STS} --batch_size 64 --epochs 2"
UNLABELLED = "{korean}/sentences/klue_nli_train.txt"
UNSUP = f"--objective simcse-unsup --train_data {UNLABELLED} --batch_size 128 --max_steps 92"
SBERT = f"--objective sbert-nli --train_data {NLI} --batch_size 64 --max_steps 184"
SBERT_MLM = f"--task sbert-nli:1:64:{NLI.replace(' ', ',')} --task mlm:1:64:{UNLABELLED} --max_steps 184"
TASKS = f"--task simcse:1:128:{TRIPLETS.replace(' ', ',')} --task sts:1:64:{STS} --epochs 1"
RUNS = {  # name: flags
    "simcse": SIMCSE,
    "simcse, no hard negatives": f"{SIMCSE} --negatives 0",
    "simcse, duplicates masked": f"{SIMCSE} --mask_duplicates",
    "simcse, Matryoshka 64, 128, 256": f"{SIMCSE} --matryoshka 64,128",
    "simcse-unsup": UNSUP,
    "simcse-unsup, cls, lr 1e-4": f"{UNSUP} --pooling cls --lr 1e-4",
    "sbert-nli": f"{SBERT} --select_by last",
    "sbert-nli, cls, lr 3e-5": f"{SBERT} --pooling cls --lr 3e-5",
    "sbert-nli + mlm, cls, lr 1e-4": f"{SBERT_MLM} --pooling cls --lr 1e-4",
    "sts": f"--objective sts {GRADED}",
    "sbert-nli, then sts": f"--objective sts {GRADED}",
    "cosent": f"--objective cosent {GRADED}",
    "simcse + sts, summed": f"{TASKS} --mix sum",
    "simcse x 0.1 + sts, summed": f"{TASKS.replace('simcse:1:', 'simcse:0.1:')} --mix sum",
    "simcse + sts, alternating": f"{TASKS} --mix alternate",
}
STARTS = {"sbert-nli, then sts": "sbert-nli"}  # where another run's model is the start instead of --model
LOCKS = collections.defaultdict(threading.Lock)


def train(args, name, seed):
    """Run one training, unless it has ended before; its run folder."""
    model = train(args, STARTS[name], seed) if name in STARTS else args.model
    folder = model if name in STARTS else args.output_dir  # with the start goes what was made from it
    run = folder / name.replace(", ", "-").replace(" ", "-") / f"seed-{seed}"
    command = [sys.executable, "train.py", "--model", str(model), "--seed", str(seed), "--output_dir", str(run)]
    command += [word.format(korean=args.korean) for word in f"{SHARED} {RUNS[name]}".split()]
    command += ["--valid_data", f"{args.korean}/KorNLU/KorSTS/sts-dev.tsv", "--resume"]
    with LOCKS[run]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        result = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=environment)
    last = result.stderr.strip().splitlines()[-1]
    if result.returncode:
        raise RunError(f"{name}, seed {seed}: {last}")
    print(f"{name}, seed {seed}: {last}", file=sys.stderr, flush=True)
    return run


def dev_scores(run):
    """Cosine Spearman on dev (at step 0, of the checkpoint that is kept)."""
    with (run / LOG_FILE).open(encoding="utf-8") as file:
        first = next(csv.DictReader(file))
    kept = json.loads((run / METRICS_FILE).read_text(encoding="utf-8"))
    return float(first["cosine_spearman"]), kept["cosine_spearman"]


def spread(values):
    """mean (min to max)."""
    return f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


@one_sentence_errors
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--korean", required=True, type=Path, metavar="FOLDER")
    add("--model", required=True, help="what to start from")
    add("--seeds", nargs="+", type=flags.seed, default=[1, 2, 3])
    add("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    add("--jobs", type=flags.positive_int, default=os.cpu_count())
    add("--output_dir", type=Path, default=Path("output/objectives"))
    args = parser.parse_args(argv)
    jobs = [(args, name, seed) for seed in args.seeds for name in args.runs]
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = dict(zip(((name, seed) for _, name, seed in jobs), pool.map(lambda job: train(*job), jobs)))

    scores = args.output_dir / "test.json"
    test = f"{args.korean}/KorNLU/KorSTS/sts-test.tsv"
    evaluate.main(["--model", *map(str, runs.values()), "--test_data", test, "--json", str(scores)])
    tested = dict(zip(runs, json.loads(scores.read_text(encoding="utf-8"))))
    print("\n| objective | dev at step 0 | dev, kept | test | test AVG |\n|---|---|---|---|---|")
    for name in args.runs:
        first, best = zip(*(dev_scores(runs[name, seed]) for seed in args.seeds))
        found = [tested[name, seed] for seed in args.seeds]
        cells = [spread(values) for values in (first, best, [score["cosine_spearman"] for score in found])]
        print(f"| {name} | {' | '.join(cells)} | {statistics.mean(score['avg'] for score in found):.2f} |")


if __name__ == "__main__":
    main()
