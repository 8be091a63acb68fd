"""Semantic search: the sentences of a corpus that are closest to a query.

python SemanticSearch.py                                   # the demo
python SemanticSearch.py --corpus lines.txt --query "오늘 날씨 어때?" --query "환불하고 싶어요"
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from data import flags
from data.dropped import Dropped
from data.errors import UserError, one_sentence_errors
from data.files import problem
from data.sentences import read_sentences
from data.tokenize import tokenize
from model.checkpoint import load_encoder
from model.pooling import POOLINGS
from model.utils import default_device, pytorch_cos_sim

DEFAULT_MODEL = "output/nli_checkpoint.pt"

CORPUS = [
    "한 남자가 음식을 먹는다.",
    "한 남자가 빵 한 조각을 먹는다.",
    "그 여자가 아이를 돌본다.",
    "한 남자가 말을 탄다.",
    "한 여자가 바이올린을 연주한다.",
    "두 남자가 수레를 숲 속으로 밀었다.",
    "한 남자가 담으로 싸인 땅에서 백마를 타고 있다.",
    "원숭이 한 마리가 드럼을 연주한다.",
    "치타 한 마리가 먹이 뒤에서 달리고 있다.",
]
QUERIES = [
    "한 남자가 파스타를 먹는다.",
    "고릴라 의상을 입은 누군가가 드럼을 연주하고 있다.",
    "치타가 들판을 가로 질러 먹이를 쫓는다.",
]


def parse_flags(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=flags.HelpFormatter)
    add = parser.add_argument
    add("--model", help=f"mini, run folder, .pt, model folder or hub id (default: {DEFAULT_MODEL}, else mini)")
    add("--tokenizer", help="file, folder or hub id, where the model comes without one")
    add("--pooling", choices=POOLINGS, help="default: saved with the model, else pooler")
    add("--max_len", type=flags.positive_int, help="default: saved with the model, else 50")
    add("--corpus", metavar="FILE", help="text, a sentence a line, or a column of a table (default: the demo's)")
    flags.add_table_flags(parser, "the corpus")
    add("--query", action="append", metavar="TEXT", help="what to look for; repeatable (default: the demo's)")
    add("--top_k", type=flags.positive_int, default=5, help="results for each query")
    add("--device", type=flags.device, default=default_device(), help="cpu, cuda, cuda:1, mps")
    return parser.parse_args(argv)


@one_sentence_errors
def main(argv=None):
    args = parse_flags(argv)
    if args.corpus is not None and not args.query:
        raise UserError("--corpus: nothing to look for; add --query TEXT")
    if any(not query.strip() or problem(query) for query in args.query or []):
        raise UserError("--query: is empty, or no text; write what to look for")
    corpus = CORPUS
    if args.corpus is not None:
        dropped = Dropped(skip=args.on_bad_row == "skip")
        corpus = read_sentences(args.corpus, args.encoding, args.columns, dropped)
        corpus = list(dict.fromkeys(corpus))  # a line that repeats would fill the places
        dropped.report(".")
        if not corpus:
            raise UserError(f"{args.corpus}: no usable row; dropped {dropped}")

    name = args.model or DEFAULT_MODEL
    if not args.model and not Path(name).is_file():
        name = "mini"
        print(f"{DEFAULT_MODEL} is not there: using mini, the encoder of model/mini", file=sys.stderr)
    encoder = load_encoder(name, args.pooling, args.max_len, args.tokenizer).to(args.device)
    tokens = tokenize(corpus, encoder.tokenizer, encoder.max_len, show_progress=True)
    if full := int((tokens.lengths == encoder.max_len).sum()):
        print(
            f"{full:,} of {len(corpus):,} sentences fill --max_len {encoder.max_len} tokens; of longer ones the "
            "rest is not looked at",
            file=sys.stderr,
        )
    corpus_embeddings = encoder.encode(tokens)
    queries = args.query or QUERIES
    top_k = min(args.top_k, len(corpus))
    for query, scores in zip(queries, pytorch_cos_sim(encoder.encode(queries), corpus_embeddings).numpy()):
        top = np.argpartition(-scores, range(top_k))[:top_k]
        print("\n\n======================\n\n")
        print("Query:", query)
        print(f"\nTop {top_k} most similar sentences in corpus:")
        for i in top:
            print(corpus[i], f"(Score: {scores[i]:.4f})")


if __name__ == "__main__":
    main()
