"""Show what data is before anybody trains on it; write it as triplets, pairs or sentences.

python -m data.prepare data/KorNLU/KorNLI/*.tsv data/KorNLU/KorSTS/*.tsv
python -m data.prepare mine.csv --columns question good bad --clean --output triplets.tsv
"""

import argparse
import importlib.util
import itertools
import re
from pathlib import Path

import numpy as np

from data import flags
from data.dropped import Dropped
from data.errors import RunError, UserError, one_sentence_errors
from data.files import file_format, require_files, write_atomically
from data.nli import LABELS, NLI, PAIRINGS, TRIPLETS, Corpus, Triplets
from data.sentences import PAIRS, SENTENCES
from data.sts import SCORED
from data.tables import Table
from data.tasks import read_examples
from data.tokenize import load_tokenizer, tokenize

MINI = Path(__file__).parent.parent / "model" / "mini"
LAYOUTS = {"NLI rows": NLI, "triplets": TRIPLETS, "scored pairs": SCORED, "pairs": PAIRS, "sentences": SENTENCES}
FOR_TRAINING = {"triplets", "NLI rows"}  # what train.py makes triplets of
NO_LIMIT = 1_000_000  # tokens: lengths are those before any cut
BAR = 40  # characters of the histogram's longest bar

# Debris of machine translation, by name: what --clean drops.
REPEATED = re.compile(r"([가-힣]{1,4}[ ,.]{0,2})\1{29,}")  # the same few syllables, 30 times in a row: 16 is laughter
NOTHING_SAID = re.compile(r"[\W_]*")  # dashes and the like


def debris(values):
    """The name of the rule under which one of a row's values is machine-translation debris, or None."""
    for value in values:
        if REPEATED.search(str(value)):
            return "repeated syllables"
        if NOTHING_SAID.fullmatch(str(value)):
            return "no letter or digit"
    return None


class File:
    """One file, read whole.

    Args:
        index: {sentence: its number}, of all files; sentences that are new go into it.
        corpus: a `Corpus` of all files that training makes triplets of; this one's rows go into it.

    Attributes:
        kind: a key of LAYOUTS.
        rows: (n, k) int64, the usable rows as numbers of their sentences, in order.
        values: (n,) what stands beside them: the label of NLI rows (a number, see LABELS), the score of scored pairs;
            else None.
        dropped: a `Dropped`.
    """

    def __init__(self, path, index, corpus, encoding, columns, skip, clean):
        self.path, self.name = path, Path(path).name
        self.dropped = Dropped(skip, debris if clean else None)
        self.kind = Table(path, LAYOUTS, encoding, columns, Dropped(skip)).kind
        if self.kind not in FOR_TRAINING:
            self.rows, self.values = read_examples(self.kind, [path], index, self.dropped, encoding, columns)
            return
        before = len(corpus.nli), len(corpus.triplets)
        corpus.add(path, encoding, columns, self.dropped)
        nli, triplets = corpus.nli[before[0] :], corpus.triplets[before[1] :]
        rows, self.values = (nli[:, :2], nli[:, 2]) if self.kind == "NLI rows" else (triplets, None)
        if not len(rows):
            raise UserError(f"{path}: no usable row; dropped {self.dropped}")
        self.rows = np.array([index.setdefault(sentence, len(index)) for sentence in corpus.index])[rows]


def print_file(file, sentences):
    """What one file holds."""

    def text(row):
        return " | ".join(_short(sentences[i]) for i in row)

    n = len(file.rows)
    left_out = sum(file.dropped.counts.values())
    print(f"{file.path}: {file.kind}")
    print(f"  rows {n + left_out:,}: {n:,} usable, {left_out:,} dropped")
    for reason, count in file.dropped.counts.items():
        where, row = file.dropped.examples[reason]
        where = where.removeprefix(f"{file.path}, ")
        row = row.values() if isinstance(row, dict) else row if isinstance(row, list) else [row]
        print(f"    {count:,} {reason}, as in {where}: {' | '.join(map(_short, row))}")
    print(f"  first row: {text(file.rows[0])}")
    print(f"  distinct sentences {len(np.unique(file.rows)):,}")
    if file.kind == "NLI rows":
        counts = np.bincount(file.values, minlength=3)
        print("  labels: " + ", ".join(f"{label} {counts[code]:,}" for label, code in LABELS.items()))
        print(f"  distinct premises {len(np.unique(file.rows[:, 0])):,}")
    if file.kind == "scored pairs":
        print_scores(file, sentences)
    whole = file.rows if file.values is None else np.column_stack([file.rows, file.values])
    repeated = repeats(whole)
    example = f", as in: {text(file.rows[repeated[0]])}" if len(repeated) else ""
    print(f"  rows that repeat an earlier one: {len(repeated):,}{example}")


def print_scores(file, sentences):
    """How the scores lie, and what is odd about them; such rows are kept, they are part of the published sets."""
    counts = np.histogram(file.values, bins=[0, 1, 2, 3, 4, 5.01])[0]
    bands = ("0-1", "1-2", "2-3", "3-4", "4-5")
    print("  scores: " + ", ".join(f"{band} {count:,}" for band, count in zip(bands, counts)))
    either_order = np.sort(file.rows, axis=1)
    again = len(repeats(either_order)) - len(repeats(np.column_stack([either_order, file.values])))
    equal = file.rows[:, 0] == file.rows[:, 1]
    empty = [i for i in np.unique(file.rows) if NOTHING_SAID.fullmatch(sentences[i])]
    oddities = {
        "pairs scored again with another score (either order)": again,
        "equal sentences scored below 5": int((equal & (file.values < 5)).sum()),
        "rows with a sentence without letter or digit": np.isin(file.rows, empty).any(axis=1).sum(),
    }
    for oddity, count in oddities.items():
        if count:
            print(f"    {count:,} {oddity}")


def repeats(rows):
    """Indices of the rows of a (n, k) array that equal an earlier row, ascending."""
    return np.setdiff1d(np.arange(len(rows)), np.unique(rows, axis=0, return_index=True)[1])


def print_shared(files):
    """Sentences and pairs that two files share: what training data must not share with a test set."""
    print("sentences that two files share (rows that hold one)")
    lines = []
    for a, b in itertools.combinations(files, 2):
        shared = np.intersect1d(a.rows, b.rows)
        if len(shared):
            rows_a, rows_b = (np.isin(file.rows, shared).any(axis=1).sum() for file in (a, b))
            lines.append(f"  {a.name} and {b.name}: {len(shared):,} ({rows_a:,} and {rows_b:,} rows)")
            if a.rows.shape[1] > 1 and b.rows.shape[1] > 1:
                ours, theirs = (np.sort(file.rows[:, :2], axis=1) @ [1 << 31, 1] for file in (a, b))
                both = np.isin(theirs, ours).sum()
                lines[-1] += f", {both:,} rows of {b.name} have both sentences of a row of {a.name}"
    print("\n".join(lines or ["  none"]))


def print_lengths(files, sentences, tokenizer, max_len):
    """Token lengths, special tokens included, and what a cut at `max_len` costs."""
    print("tokens a sentence, special tokens included (each distinct sentence of a file once)")
    all_lengths = tokenize(sentences, tokenizer, NO_LIMIT, show_progress=True).lengths
    every = []
    for file in files:
        lengths = all_lengths[np.unique(file.rows)]
        every.append(lengths)
        quantiles = np.percentile(lengths, [50, 90, 99]).astype(int)
        print(
            f"  {file.name}: mean {lengths.mean():.1f}, median {quantiles[0]}, 90% {quantiles[1]}, 99% {quantiles[2]}, "
            f"longest {lengths.max():,}; cut by --max_len {max_len}: {(lengths > max_len).mean():.2%}"
        )
    lengths = np.concatenate(every)
    edges = [0, 8, 16, 24, 32, 40, 50, 64, 96, 128, 256, 512, NO_LIMIT]
    counts = np.histogram(lengths, bins=[edge + 1 for edge in edges])[0]
    last = np.flatnonzero(counts)[-1] + 1
    for low, high, count in zip(edges[:last], edges[1:], counts):
        label = f"{low + 1}-{high}" if high < NO_LIMIT else f"{low + 1}-"
        print(f"  {label:>8} {count:>10,} {'#' * round(BAR * count / counts.max())}".rstrip())


def parse_flags(argv):
    parser = argparse.ArgumentParser(
        prog="python -m data.prepare", description=__doc__.splitlines()[0], formatter_class=flags.HelpFormatter
    )
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="NLI rows, triplets, scored pairs, pairs or sentences")
    flags.add_table_flags(parser)
    add("--clean", action="store_true", help="also drop machine-translation debris: repeated syllables, dashes only")
    add("--tokenizer", default=str(MINI), help="file, folder or hub id, for token lengths (default: mini's)")
    add("--max_len", type=flags.positive_int, default=50, help="tokens a sentence would be cut at")
    add("--pairing", choices=PAIRINGS, default="one", help="triplets from NLI rows: one a premise, or all")
    add("--seed", type=flags.seed, default=1234, help="of the pairing")
    add("--output", metavar="OUT", help="write triplets, pairs or sentences to OUT.tsv or OUT.parquet")
    return parser.parse_args(argv)


def check_output(path):
    if file_format(path, default="") not in (".tsv", ".parquet") or path.name.endswith(".gz"):
        raise UserError(f"--output {path}: name a .tsv or .parquet file")
    if path.exists():
        raise UserError(f"--output {path}: is there already; name another file, or remove it")
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: no folder {path.parent}")
    if file_format(path) == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise RunError(f"{path}: Parquet files need one more package: pip install pyarrow")


@one_sentence_errors
def main(argv=None):
    args = parse_flags(argv)
    require_files(args.files)
    if args.output:
        check_output(Path(args.output))
    tokenizer = load_tokenizer(args.tokenizer)
    skip = args.on_bad_row == "skip"
    files, index, corpus = [], {}, Corpus()  # with numbers of its own: the draw of triplets is then train.py's
    for path in args.files:
        files.append(File(path, index, corpus, args.encoding, args.columns, skip, args.clean))
        print_file(files[-1], list(index))
    kinds = sorted({"triplets" if file.kind in FOR_TRAINING else file.kind for file in files})
    if args.output and len(kinds) > 1:
        raise UserError(f"--output: the files are of different kinds ({', '.join(kinds)}); prepare them apart")
    if len(files) > 1:
        print_shared(files)
    print_lengths(files, list(index), tokenizer, args.max_len)

    paired = {pairing: corpus.pair(pairing, args.seed)[0] for pairing in PAIRINGS}
    if len(corpus.nli):
        counts = ", ".join(f"{len(rows):,} with --pairing {pairing}" for pairing, rows in paired.items())
        print(f"triplets of all files together: {counts}")
    if args.output:
        triplets = Triplets(list(corpus.index), paired[args.pairing]) if corpus.index else None
        write_output(Path(args.output), files, list(index), triplets)
    rejected = Dropped(skip)
    rejected.rows = [row for file in files for row in file.dropped.rows]
    if rows_file := rejected.write("."):
        print(f"the {len(rejected.rows):,} dropped rows are in {rows_file}")


def write_output(path, files, sentences, triplets):
    """Write the triplets, or the rows of files that are all of one other kind, as .tsv (no header) or .parquet."""
    names = [names[0] for names in LAYOUTS["triplets" if triplets else files[0].kind].columns]
    if triplets:
        rows = [[triplets.sentences[i] for i in example] for example in triplets.examples]
    else:
        rows = [
            [*(sentences[i] for i in row), *([] if file.values is None else [float(file.values[k])])]
            for file in files
            for k, row in enumerate(file.rows.tolist())
        ]
    if not rows:
        raise UserError(f"--output {path}: no premise with both an entailment and a contradiction")
    with write_atomically(path) as output:
        if file_format(path) == ".parquet":
            import pyarrow
            from pyarrow import parquet

            parquet.write_table(pyarrow.table(dict(zip(names, map(list, zip(*rows))))), output)
        else:
            output.writelines(("\t".join(map(str, row)) + "\n").encode() for row in rows)
    print(f"{path}: {len(rows):,} rows of {', '.join(names)}")


def _short(value):
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else text[:59] + "…"


if __name__ == "__main__":
    main()
