"""Score sentence encoders on STS files: eight correlations x100 over the whole set, and their mean.

python evaluate.py --model output --test_data KorSTS/sts-test.tsv
python evaluate.py --model output skt/kobert-base-v1 --test_data sts-dev.tsv sts-test.tsv --json scores.json
"""

import argparse
import math
import os
import sys
from pathlib import Path

from data import flags
from data.download import KORSTS_TEST, default_files
from data.dropped import Dropped
from data.errors import UserError, one_sentence_errors
from data.files import read_json, write_json
from data.sts import read_sts
from model.checkpoint import load_encoder
from model.metrics import CORRELATIONS, evaluate_sts
from model.pooling import POOLINGS
from model.utils import default_device

COLUMNS = ["AVG", *(name.replace("_", " ").title() for name in CORRELATIONS)]


def parse_flags(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=flags.HelpFormatter)
    add = parser.add_argument
    add("--model", nargs="+", action="extend", help="mini, run folder, .pt, folder or hub id (default: output)")
    add("--test_data", **flags.FILES, help="STS files, each scored on its own (default: KorSTS test of data.download)")
    add("--tokenizer", help="file, folder or hub id, where a model comes without one")
    add("--pooling", choices=POOLINGS, help="default: saved with the model, else pooler")
    add("--max_len", type=flags.positive_int, help="default: saved with the model, else 50")
    add("--dim", type=flags.positive_int, help="cut embeddings at so many numbers, as --matryoshka trains them")
    add("--batch_size", type=flags.positive_int, default=64, help="sentences in a forward pass")
    flags.add_table_flags(parser)
    add("--device", type=flags.device, default=default_device(), help="cpu, cuda, cuda:1, mps")
    add("--json", metavar="OUT", help="also write the scores to this file")
    return parser.parse_args(argv)


@one_sentence_errors
def main(argv=None):
    args = parse_flags(argv)
    if not args.model:
        if not Path("output").is_dir():
            raise UserError("output, the default of --model, is not there; train first, or name a model")
        args.model = ["output"]
    if not args.test_data:
        args.test_data = default_files(KORSTS_TEST, flag="--test_data")
    if args.json:
        check_json_path(Path(args.json), args.test_data)
    dropped = Dropped(skip=args.on_bad_row == "skip")
    test_sets = [(file, read_sts([file], args.encoding, args.columns, dropped)) for file in args.test_data]
    dropped.report(".")
    results, several = [], len(test_sets) > 1
    for name in args.model:
        dims = args.dim and [args.dim]
        encoder = load_encoder(name, args.pooling, args.max_len, args.tokenizer, dims=dims).to(args.device)

        def encode(sentences, encoder=encoder):
            return encoder.encode(sentences, batch_size=args.batch_size)[:, : args.dim]

        for file, pairs in test_sets:
            scores = evaluate_sts(encode, [*pairs.sentences1, *pairs.sentences2], pairs.scores)
            if not results:  # a Markdown table, columns as in the README
                print("| Model |" + " Data |" * several + "".join(f" {column} |" for column in COLUMNS))
                print("|---|" + "---|" * several + ":---:|" * len(COLUMNS), flush=True)
            cut = {"dim": args.dim} if args.dim else {}
            results.append({"model": name, "data": file, "rows": len(pairs.scores), **cut, **scores})
            cells = [name, *[file] * several, *(f"{scores[key]:.2f}" for key in ("avg", *CORRELATIONS))]
            print("| " + " | ".join(cells) + " |", flush=True)
            if math.isnan(scores["avg"]):
                print("nan: the model gives every pair the same similarity", file=sys.stderr)
            if args.json:
                write_json(args.json, results)


def check_json_path(path, test_data):
    """Raise UserError before any work where --json could not be written, or would replace what is scored."""
    if any(path.resolve() == Path(file).resolve() for file in test_data):
        raise UserError(f"--json {path}: is one of --test_data; name another file")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"--json {path}: the folder {path.parent} is not there or cannot be written to")
    if path.exists() and not path.is_file():
        raise UserError(f"--json {path}: is not an ordinary file; name another")
    if path.suffix != ".json":
        raise UserError(f"--json {path}: expected a name that ends in .json")
    if path.exists():
        read_json(path, kind=list)  # scores, not a run's configuration


if __name__ == "__main__":
    main()
