"""What Sentence-BERT's NLI objective learns: held-out accuracy, with both sentences and with the hypothesis alone.

    python -m benchmarks.nli_accuracy --model MODEL --train_data NLI... --test_data NLI... --seeds 1 2 3

Premises of the second column are all one and the same sentence, in training and in testing: what is right there is
known from the hypothesis's wording (Gururangan et al. 2018, arXiv:1803.02324). A third of the rows is chance.
"""

import argparse
import statistics

import numpy as np
import torch
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup

from data import flags
from data.dropped import Dropped
from data.errors import one_sentence_errors
from data.files import require_files
from data.tasks import Examples, read_examples
from data.tokenize import cached_tokens
from model.checkpoint import load_encoder
from model.microbatch import Encode
from model.objectives import SBERTNLI
from model.trainer import parameter_groups
from model.utils import default_device, resolve_precision

MAX_LEN, BATCH, MICRO_BATCH_TOKENS = 64, 64, 8192


def accuracy(args, sentences, train, test, seed):
    """Train on `train`, score on `test`: percent of labels that are right."""
    torch.manual_seed(seed)
    device = default_device()
    encoder = load_encoder(args.model, args.pooling, MAX_LEN, training=True).to(device)
    precision = resolve_precision("auto", device)
    encode = Encode(encoder, cached_tokens(sentences, encoder.tokenizer, MAX_LEN), MICRO_BATCH_TOKENS, False, precision)
    objective = SBERTNLI([encoder.dim]).to(device)
    model = torch.nn.ModuleList([encoder, objective])
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.0), lr=args.lr)
    batches = np.random.default_rng(seed).permutation(len(train.rows))
    batches = np.array_split(batches, max(1, len(batches) // BATCH))[: args.max_steps]
    schedule = get_linear_schedule_with_warmup(optimizer, len(batches) // 10, len(batches))
    model.train()
    for batch in tqdm(batches, desc="train", unit="step", disable=None, leave=False):
        objective(encode, train.rows[batch], train.labels[batch]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()
    classifier = objective.classifiers[str(encoder.dim)]
    right, parts = 0, min(20, len(test.labels))
    with torch.no_grad():
        for rows, labels in zip(np.array_split(test.rows, parts), np.array_split(test.labels, parts)):
            u, v = encode(rows.T.reshape(-1)).chunk(2)
            guesses = classifier(torch.cat([u, v, (u - v).abs()], dim=1)).argmax(1).cpu().numpy()
            right += (guesses == labels).sum()
    return 100 * right / len(test.labels)


@one_sentence_errors
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", required=True, help="what to start from")
    add("--train_data", nargs="+", required=True, metavar="FILE")
    add("--test_data", nargs="+", required=True, metavar="FILE")
    add("--pooling", default="mean")
    add("--lr", type=flags.positive_float, default=1e-4)
    add("--max_steps", type=flags.positive_int, help=f"of {BATCH} rows; default: one pass over --train_data")
    add("--seeds", nargs="+", type=flags.seed, default=[1, 2, 3])
    args = parser.parse_args(argv)
    require_files([*args.train_data, *args.test_data])
    index = {}
    train, test = (read_examples("labelled pairs", x, index, Dropped()) for x in (args.train_data, args.test_data))
    print(f"{len(train.rows):,} rows to train on, {len(test.rows):,} to test on; mean (min to max) of {args.seeds}")
    for name in ("premise and hypothesis", "hypothesis alone"):
        if name == "hypothesis alone":
            train, test = (
                Examples(np.stack([0 * x.rows[:, 1], x.rows[:, 1]], axis=1), x.labels) for x in (train, test)
            )
        found = [accuracy(args, list(index), train, test, seed) for seed in args.seeds]
        print(f"  {name}: {statistics.mean(found):.1f} ({min(found):.1f} to {max(found):.1f})%")


if __name__ == "__main__":
    main()
