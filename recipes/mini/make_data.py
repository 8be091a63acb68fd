"""The files that mini is trained and measured on, from a folder of open Korean data.

    python -m recipes.mini.make_data KOREAN --output DATA

KOREAN holds sentences/, pairs/, groups/, triplets/, KorNLU/ and KLUE/; model/mini/README.md names the sources.
kindred.txt has sentences like those measured: of the files KINDRED, triplets, KorSTS train and KLUE-STS train.

Held out, to be measured on: paraphrase groups whose id is divisible by 10 (retrieval.tsv), and every 20th row of
KLUE-STS train (klue_sts_heldout.tsv). A row or line with a sentence of theirs, or of KorSTS dev or test, is in no
training file, compared without spaces, punctuation and case; held_out.txt holds them so. Two things remain: KorSTS
train is taken as published, with the sentences that KorSTS dev and test have in common with it; and other paraphrases
of a sentence in klue_sts_heldout.tsv may be in pairs.tsv and klue_sts_train.tsv.
"""

import argparse
import itertools
import sys
import unicodedata
from pathlib import Path

from data.errors import UserError, one_sentence_errors
from data.files import write_atomically
from data.nli import read_triplets
from data.sentences import read_pairs, read_sentences
from data.sts import read_sts

MAX_LINES = 50_000  # of one file of sentences, so that film reviews do not outweigh the rest; as for the vocabulary
GROUPS = ("paraKQC", "stylekqc")
KINDRED = ("kommongen_captions", "korean_parallel_corpora_news", "ntrex_newstest2019")  # captions, news: as in KorSTS


def key(sentence):
    """What counts of a sentence where sentences are compared: letters and digits."""
    return "".join(c for c in unicodedata.normalize("NFKC", sentence).lower() if c.isalnum())


def read_all(korean):
    """{file name: rows, tuples of fields}, everything that may be trained on, nothing held out yet."""
    files = {"sentences.txt": [], "pairs.tsv": []}
    for path in sorted((korean / "sentences").glob("*.txt")):
        files["sentences.txt"] += [(line,) for line in itertools.islice(read_sentences(path), MAX_LINES)]
    for path in sorted((korean / "pairs").glob("*.tsv")):
        files["pairs.tsv"] += read_pairs(path)
    triplets = [str(path) for path in sorted((korean / "triplets").glob("*.tsv"))]
    sentences, rows = read_triplets(triplets)
    files["triplets.tsv"] = [tuple(sentences[i] for i in row) for row in rows]
    sts = {"korsts_train.tsv": "KorNLU/KorSTS/sts-train.tsv", "klue_sts_train.tsv": "KLUE/klue_sts_train.csv"}
    for name, path in sts.items():
        files[name] = list(zip(*read_sts([korean / path])))
    return files


@one_sentence_errors
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("korean", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(argv)
    for part in ("sentences", "pairs", "groups", "triplets", "KorNLU", "KLUE"):
        if not (args.korean / part).is_dir():
            raise UserError(f"{args.korean}: has no {part}/; name the folder of open Korean data")
    files = read_all(args.korean)

    retrieval = [
        (f"{name}-{group}", sentence)
        for name in GROUPS
        for group, sentence in read_pairs(args.korean / f"groups/{name}.tsv")
        if group.endswith("0")  # divisible by 10
    ]
    klue = files["klue_sts_train.tsv"][::20]
    korsts = read_sts([args.korean / f"KorNLU/KorSTS/sts-{part}.tsv" for part in ("dev", "test")])
    held_out = {key(sentence) for _, sentence in retrieval}
    held_out |= {key(sentence) for a, b, _ in klue for sentence in (a, b)}
    measured = held_out | {key(sentence) for sentence in (*korsts.sentences1, *korsts.sentences2)}
    for name, rows in files.items():
        banned = held_out if name == "korsts_train.tsv" else measured
        files[name] = [row for row in rows if not any(key(v) in banned for v in row if isinstance(v, str))]
    # every sentence is text for masked language modelling
    texts = {key(v): v for rows in files.values() for row in rows for v in row if isinstance(v, str)}
    files["sentences.txt"] = [(text,) for text_key, text in texts.items() if text_key not in measured]
    kindred = [(line,) for name in KINDRED for line in read_sentences(args.korean / f"sentences/{name}.txt")]
    kindred += itertools.chain(files["triplets.tsv"], files["korsts_train.tsv"], files["klue_sts_train.tsv"])
    kindred = {key(v): v for row in kindred for v in row if isinstance(v, str)}
    files["kindred.txt"] = [(v,) for k, v in kindred.items() if k not in measured]
    files |= {"retrieval.tsv": retrieval, "klue_sts_heldout.tsv": klue, "held_out.txt": sorted(zip(measured))}

    args.output.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        with write_atomically(args.output / name) as file:
            for row in rows:
                file.write(("\t".join(map(str, row)) + "\n").encode())
        print(f"{name}: {len(rows):,}", file=sys.stderr)


if __name__ == "__main__":
    main()
