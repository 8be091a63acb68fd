"""Score sentence encoders on STS files: eight correlations x100 over the whole set, and their mean.

python evaluate.py --model output --test_data KorSTS/sts-test.tsv
python evaluate.py --model output skt/kobert-base-v1 --test_data sts-dev.tsv sts-test.tsv --json scores.json
"""

import argparse
import json
import math
import sys

from data import flags
from data.errors import one_sentence_errors
from data.sts import read_sts
from model.checkpoint import load_encoder, write_atomically
from model.metrics import CORRELATIONS, evaluate_sts, json_ready
from model.pooling import POOLINGS
from model.utils import default_device

COLUMNS = ["AVG", *(name.replace("_", " ").title() for name in CORRELATIONS)]


def parse_flags(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", nargs="+", default=["output"], help="mini, run folder, .pt, folder or hub id (default: output)")
    add("--test_data", nargs="+", required=True, metavar="FILE", help="STS files, each scored on its own")
    add("--tokenizer", help="file, folder or hub id, where a model comes without one")
    add("--pooling", choices=POOLINGS, help="default: saved with the model, else pooler")
    add("--max_len", type=flags.positive_int, help="default: saved with the model, else 50")
    add("--batch_size", type=flags.positive_int, default=64, help="sentences in a forward pass (default: 64)")
    add("--encoding", default="utf-8", help="of the test files, such as cp949 (default: utf-8)")
    add("--device", type=flags.device, default=default_device(), help="cpu, cuda, cuda:1, mps")
    add("--json", metavar="OUT", help="also write the scores to this file")
    return parser.parse_args(argv)


@one_sentence_errors
def main(argv=None):
    args = parse_flags(argv)
    test_sets = [(file, read_sts([file], args.encoding)) for file in args.test_data]
    results = []
    for name in args.model:
        encoder = load_encoder(name, args.pooling, args.max_len, args.tokenizer).to(args.device)
        for file, pairs in test_sets:
            scores = evaluate_sts(
                lambda sentences: encoder.encode(sentences, batch_size=args.batch_size),  # noqa: B023
                [*pairs.sentences1, *pairs.sentences2],
                pairs.scores,
            )
            results.append({"model": name, "data": file, "rows": len(pairs.scores), **scores})
    print_table(results)
    if args.json:
        with write_atomically(args.json) as file:
            file.write((json.dumps([json_ready(result) for result in results], indent=1) + "\n").encode())


def print_table(results):
    """The results as a Markdown table, columns as in the README."""
    several = len({result["data"] for result in results}) > 1
    print("| Model |" + " Data |" * several + "".join(f" {column} |" for column in COLUMNS))
    print("|---|" + "---|" * several + ":---:|" * len(COLUMNS))
    for result in results:
        cells = [result["model"]] + [result["data"]] * several
        print("| " + " | ".join(cells + [f"{result[name]:.2f}" for name in ("avg", *CORRELATIONS)]) + " |")
    if any(math.isnan(result["avg"]) for result in results):
        print("nan: the model gives every pair the same similarity", file=sys.stderr)


if __name__ == "__main__":
    main()
