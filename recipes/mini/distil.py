"""Train mini to give the cosines that its teachers give on average, and to order the labelled pairs.

    python -m recipes.mini.distil DATA --variants DATA/variants.tsv --model START --teachers RUN=WEIGHT... \\
      --valid_data KorSTS/sts-dev.tsv --max_steps 4000 --lr 1e-3 --output_dir RUN

Other flags are train.py's. A teacher is a run folder, or word vectors (recipes.mini.static). Each example is a sentence
of DATA/kindred.txt, two variants of it (recipes.mini.make_variants), two sentences that the teachers find near it, and
two at random from all; every cosine among a batch's sentences is to be the teachers', after Tung and Mori 2019,
Similarity-Preserving Knowledge Distillation (arXiv:1907.09682).
"""

import argparse
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import train
from data.dropped import Dropped
from data.errors import UserError, one_sentence_errors
from data.files import require_files
from data.sentences import read_sentences
from data.sts import read_sts
from data.tasks import read_examples
from data.tokenize import cached_tokens
from model.checkpoint import load_encoder
from model.metrics import evaluate_sts
from model.microbatch import Encode, to_device
from model.objectives import CoSENT, Objective
from model.run_folder import RunFolder, only_writer
from model.trainer import Task
from model.utils import autocast, resolve_precision
from recipes.mini.static import VECTORS_FILE, StaticEncoder

GRADED = (
    ("korsts_train.tsv", 1, 0.3),
    ("klue_sts_train.tsv", 2, 0.15),
)  # file, examples in a step for one pair, weight
GROUP = 5  # sentences of an example that are alike: itself, two variants, two neighbours
NEAREST = 30  # neighbours are drawn from so many, the nearer the likelier
OTHERS = 50_000  # of the sentences that are not kindred


class Distillation(Objective):
    """100 (mean squared error of cosines within groups + the same of all others) / 2.

    Args:
        teachers: (sentences, D): products of its rows are the teachers' mean cosines.
    """

    def __init__(self, teachers):
        super().__init__([])
        self.teachers = teachers

    def forward(self, encode, rows, labels=None):
        count, k = rows.shape
        numbers = rows.T.reshape(-1)
        student = F.normalize(encode(numbers), dim=1)
        device = student.device
        teacher = self.teachers[to_device(numbers, device)].float()
        errors = (student @ student.T - teacher @ teacher.T) ** 2
        example = torch.arange(count, device=device).repeat(k)
        example[count * GROUP :] = -1  # strangers
        alike = (example[:, None] == example) & (example >= 0)
        oneself = torch.eye(len(example), dtype=torch.bool, device=device)
        return 50 * sum((errors * chosen).sum() / chosen.sum() for chosen in (alike & ~oneself, ~alike & ~oneself))


def path_and_weight(text):
    """("run", 0.5) of "run=0.5", for argparse."""
    path, _, weight = text.rpartition("=")
    if not path or float(weight) <= 0:  # argparse says what was expected
        raise ValueError(text)
    return path, float(weight)


path_and_weight.__name__ = "RUN=WEIGHT"


def load_teacher(path):
    """The encoder in a folder: word vectors, or a run."""
    return StaticEncoder.load(path) if (Path(path) / VECTORS_FILE).is_file() else load_encoder(path)


def teach(teachers, sentences, device):
    """(n, D) half precision: each row holds a sentence's vectors by [(encoder, weight)], see Distillation."""
    found = []
    for encoder, weight in teachers:
        if isinstance(encoder, StaticEncoder):
            parts = [encoder.encode(sentences[start : start + 10_000]) for start in range(0, len(sentences), 10_000)]
            vectors = torch.cat(parts)
        else:
            with autocast(resolve_precision("auto", device), device):
                vectors = encoder.encode(sentences, device, batch_size=1024)
        found.append((weight**0.5 * F.normalize(vectors, dim=1)).half())
    return torch.cat(found, 1).to(device)


def neighbours(vectors, count):
    """(count, NEAREST): which of n sentences are nearest to the first `count`, the nearest first."""
    found, vectors = [], vectors.float()
    for start in tqdm(range(0, count, 1000), disable=None, desc="neighbours"):
        rows = torch.arange(start, min(start + 1000, count), device=vectors.device)
        similarities = vectors[rows] @ vectors.T
        similarities[torch.arange(len(rows), device=rows.device), rows] = -2  # itself
        found.append(similarities.topk(NEAREST).indices.cpu())
    return torch.cat(found).numpy()


def make_examples(variants, near, pool, count, generator):
    """(count, 7) numbers of sentences.

    Args:
        variants: of sentence i the numbers of its variants.
        near: (len(variants), NEAREST) numbers, see `neighbours`.
        pool: number of sentences that are nobody's variants; those have the first numbers.
    """
    anchors = np.concatenate([generator.permutation(len(variants)) for _ in range(-(-count // len(variants)))])[:count]
    of_anchors = np.array([[variants[i][n % len(variants[i])] for n in generator.integers(0, 60, 2)] for i in anchors])
    ranks = (NEAREST ** generator.random((count, 2))).astype(int) - 1
    strangers = generator.integers(0, pool, (count, 2))
    return np.column_stack([anchors, of_anchors, near[anchors[:, None], ranks], strangers])


@one_sentence_errors
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("data", type=Path)
    parser.add_argument("--variants", type=Path, required=True)
    parser.add_argument("--teachers", nargs="+", type=path_and_weight, required=True, metavar="RUN=WEIGHT")
    args, others = parser.parse_known_args(argv)
    settings = train.parse_flags(
        ["--pooling", "mean", "--max_len", "64", "--dropout", "0", "--batch_size", "128", *others]
    )
    if not (settings.max_steps and settings.valid_data):
        raise UserError("name --max_steps and --valid_data, too")
    require_files([args.variants, *settings.valid_data])
    teachers = [(load_teacher(path), weight) for path, weight in args.teachers]

    groups = [line.split("\t") for line in args.variants.read_text(encoding="utf-8").splitlines()]
    sentences = read_sentences(args.data / "sentences.txt")
    random.Random(0).shuffle(sentences)
    sentences = [sentence for sentence in sentences if 8 <= len(sentence) <= 90][:OTHERS]
    index = {}
    for sentence in [*(anchor for anchor, *_ in groups), *sentences, *(v for _, *group in groups for v in group)]:
        index.setdefault(sentence, len(index))
    pool = len({*sentences, *(anchor for anchor, *_ in groups)})
    texts = list(index)
    of_pool = teach(teachers, texts[:pool], settings.device)
    near = neighbours(of_pool, len(groups))
    variants = [[index[variant] for variant in group] for _, *group in groups]
    count = settings.batch_size * settings.max_steps
    rows = make_examples(variants, near, pool, count, np.random.default_rng(settings.seed))
    vectors = of_pool.new_zeros(len(texts), of_pool.shape[1])
    vectors[:pool] = of_pool
    drawn = np.unique(rows[rows >= pool])
    vectors[torch.from_numpy(drawn)] = teach(teachers, [texts[i] for i in drawn], settings.device)
    graded = [read_examples("scored pairs", [args.data / name], index, Dropped()) for name, *_ in GRADED]

    torch.manual_seed(settings.seed)
    choices = (settings.pooling, settings.max_len, settings.tokenizer, settings.dropout)
    encoder = load_encoder(settings.model, *choices, training=True).to(settings.device)
    tasks = [Task(Distillation(vectors), rows, None, settings.batch_size)]
    for examples, (_, share, weight) in zip(graded, GRADED):
        tasks.append(Task(CoSENT([encoder.dim]), *examples, settings.batch_size // share, weight))
    tokens = cached_tokens(list(index), encoder.tokenizer, settings.max_len)
    dev = read_sts(settings.valid_data)
    dev_tokens = cached_tokens([*dev.sentences1, *dev.sentences2], encoder.tokenizer, settings.max_len)
    precision = resolve_precision(settings.precision, settings.device)
    flags = {name: str(value) for name, value in {**vars(settings), **vars(args)}.items()}

    def comparable(config):
        return {name: value for name, value in config["flags"].items() if name not in ("output_dir", "resume")}

    with only_writer(settings.output_dir):
        best, _ = train.train(
            Encode(encoder, tokens, settings.micro_batch_tokens, precision=precision),
            tasks,
            evaluate=lambda encoder: evaluate_sts(encoder.encode, dev_tokens, dev.scores),
            run=RunFolder(settings.output_dir, {"flags": flags}, comparable, settings.resume),
            settings=settings,
        )
    print(f"best: step {best['step']}, dev cosine_spearman {best['cosine_spearman']:.2f}")


if __name__ == "__main__":
    main()
