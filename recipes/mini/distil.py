"""Train mini to give the cosines that its teachers give on average, and to order the labelled pairs.

    python -m recipes.mini.distil DATA --variants DATA/variants.tsv --model START --teachers RUN=WEIGHT... \\
      --valid_data KorSTS/sts-dev.tsv --max_steps 4000 --lr 1e-3 --output_dir RUN

Other flags of training and of the run folder are train.py's; data are those named here. A teacher is a run folder, or
word vectors (recipes.mini.static). Each example is a sentence of DATA/kindred.txt, two variants of it
(recipes.mini.make_variants), two sentences that the teachers find near it, and two at random from all; every cosine
among a batch's sentences is to be the teachers', after Tung and Mori 2019, Similarity-Preserving Knowledge Distillation
(arXiv:1907.09682).
"""

import argparse
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import train
from data import flags
from data.dropped import Dropped
from data.errors import UserError, one_sentence_errors
from data.files import require_files, sha256
from data.sentences import read_sentences
from data.sts import read_sts
from data.tasks import read_examples
from data.tokenize import cached_tokens
from model.checkpoint import load_encoder
from model.metrics import evaluate_sts
from model.microbatch import Encode, to_device
from model.objectives import CoSENT, Objective
from model.run_folder import RunFolder, check_run_folder, only_writer
from model.trainer import Task
from model.utils import resolve_precision
from recipes.mini.static import VECTORS_FILE, StaticEncoder

GRADED = (("korsts_train.tsv", 1, 0.3), ("klue_sts_train.tsv", 2, 0.15))  # file, examples for one of its pairs, weight
GROUP = 5  # sentences of an example that are alike: itself, two variants, two neighbours
NEAREST = 30  # neighbours are drawn from so many (but the last), the nearer the likelier
OTHERS = 50_000  # of all sentences are in the pool beside the kindred ones, none very short or long


class Distillation(Objective):
    """100 (mean squared error of cosines within groups + the same of all others) / 2; rows (B, 7) as of make_examples.

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
    if not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not RUN=WEIGHT")
    return path, flags.positive_float(weight)


def load_teacher(path):
    """The encoder in a folder: word vectors, or a run."""
    return StaticEncoder.load(path) if (Path(path) / VECTORS_FILE).is_file() else load_encoder(path)


def teach(teachers, sentences, device):
    """(n, D) half precision, on `device`: products of rows are the mean cosines by [(encoder, weight)]."""
    total, found = sum(weight for _, weight in teachers), []
    for encoder, weight in teachers:
        if isinstance(encoder, StaticEncoder):
            vectors = encoder.encode(sentences)
        else:
            vectors = encoder.encode(sentences, device, batch_size=1024 if device.type == "cuda" else 64)
        found.append(((weight / total) ** 0.5 * F.normalize(vectors, dim=1)).half())
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
        pool: number of sentences in the pool, the anchors and others; they have the first numbers.
    """
    anchors = np.concatenate([generator.permutation(len(variants)) for _ in range(-(-count // len(variants)))])[:count]
    # 60 is a multiple of whatever number of variants a sentence has; both may be the same one
    of_anchors = np.array([[variants[i][n % len(variants[i])] for n in generator.integers(0, 60, 2)] for i in anchors])
    ranks = (NEAREST ** generator.random((count, 2))).astype(int) - 1
    strangers = generator.integers(0, pool, (count, 2))
    return np.column_stack([anchors, of_anchors, near[anchors[:, None], ranks], strangers])


def read_variants(path):
    """{sentence: its variants} of what make_variants wrote.

    Raises:
        UserError: a line is no sentence with variants, or there are too few.
    """
    groups = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"), 1):
        sentence, *variants = line.split("\t")
        if not variants:
            raise UserError(f"{path}, line {number}: expected a sentence and variants of it, separated by tabs")
        groups.setdefault(sentence, []).extend(variants)
    if len(groups) <= NEAREST:
        raise UserError(f"{path}: holds {len(groups)} sentences; expected more than {NEAREST}")
    return groups


@one_sentence_errors
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("data", type=Path)
    parser.add_argument("--variants", type=Path, required=True)
    parser.add_argument("--model", required=True, help="to start from")
    parser.add_argument("--teachers", nargs="+", type=path_and_weight, required=True, metavar="RUN=WEIGHT")
    args, others = parser.parse_known_args(argv)
    fixed = ["--pooling", "mean", "--max_len", "64", "--dropout", "0", "--batch_size", "128"]
    settings = train.parse_flags([*fixed, "--model", args.model, *others])
    if not (settings.max_steps and settings.valid_data):
        raise UserError("name --max_steps and --valid_data, too")
    inputs = [args.variants, *(args.data / name for name, *_ in GRADED), *settings.valid_data]
    require_files(inputs)
    check_run_folder(settings.output_dir)
    dev = read_sts(settings.valid_data)
    groups = read_variants(args.variants)
    everything = read_sentences(args.data / "sentences.txt")
    random.Random(0).shuffle(everything)
    strangers = [sentence for sentence in everything if 8 <= len(sentence) <= 90][:OTHERS]
    index = {sentence: i for i, sentence in enumerate(dict.fromkeys([*groups, *strangers]))}
    pool = len(index)
    variants = [[index.setdefault(variant, len(index)) for variant in group] for group in groups.values()]
    texts = list(index)
    graded = [read_examples("scored pairs", [args.data / name], index, Dropped()) for name, *_ in GRADED]
    torch.manual_seed(settings.seed)
    choices = (settings.pooling, settings.max_len, settings.tokenizer, settings.dropout)
    encoder = load_encoder(settings.model, *choices, training=True).to(settings.device)
    precision = resolve_precision(settings.precision, settings.device)
    teachers = [(load_teacher(path), weight) for path, weight in args.teachers]

    config = {name: str(value) for name, value in {**vars(settings), **vars(args), "precision": precision}.items()}
    config["data_sha256"] = [sha256(path) for path in inputs]

    def comparable(config):
        return {name: value for name, value in config["flags"].items() if name not in ("output_dir", "resume")}

    with only_writer(settings.output_dir):
        run = RunFolder(settings.output_dir, {"flags": config}, comparable, settings.resume)
        of_pool = teach(teachers, texts[:pool], settings.device)
        near = neighbours(of_pool, len(groups))
        count = settings.batch_size * settings.max_steps
        rows = make_examples(variants, near, pool, count, np.random.default_rng(0))  # data: the same for every seed
        vectors = of_pool.new_zeros(len(texts), of_pool.shape[1])
        vectors[:pool] = of_pool
        drawn = np.unique(rows[rows >= pool])
        if len(drawn):
            vectors[torch.from_numpy(drawn)] = teach(teachers, [texts[i] for i in drawn], settings.device)
        tasks = [Task(Distillation(vectors), rows, None, settings.batch_size)]
        for examples, (_, share, weight) in zip(graded, GRADED):
            tasks.append(Task(CoSENT([encoder.dim]), *examples, max(1, settings.batch_size // share), weight))
        tokens = cached_tokens(list(index), encoder.tokenizer, settings.max_len)
        dev_tokens = cached_tokens([*dev.sentences1, *dev.sentences2], encoder.tokenizer, settings.max_len)
        best, _ = train.train(
            Encode(encoder, tokens, settings.micro_batch_tokens, precision=precision),
            tasks,
            evaluate=lambda encoder: evaluate_sts(encoder.encode, dev_tokens, dev.scores),
            run=run,
            settings=settings,
        )
    print(f"best: step {best['step']}, dev cosine_spearman {best['cosine_spearman']:.2f}")


if __name__ == "__main__":
    main()
