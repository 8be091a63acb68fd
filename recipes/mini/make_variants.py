"""Variants of sentences: some of their pieces guessed anew by a masked language model.

    python -m recipes.mini.make_variants DATA --model RUN --output DATA/variants.tsv

RUN is a training of `--objective mlm`. Of each sentence of DATA/kindred.txt (recipes.mini.make_data) a tenth to a half
of the pieces are hidden at a time, and drawn from the model's 50 likeliest: sentences that share much and mean
something else, or the same. A line is a sentence and its variants. None is a sentence that mini is measured on.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data import flags
from data.errors import UserError, one_sentence_errors
from data.files import write_atomically
from data.sentences import read_sentences
from data.tokenize import tokenize
from model.checkpoint import load_encoder
from model.microbatch import pad
from model.objectives import MaskedLM
from model.run_folder import STATES_FOLDER
from model.states import States
from model.utils import default_device
from recipes.mini.make_data import key

LIKELIEST = 50
BATCH = 256


def load_language_model(run):
    """(SentenceEncoder, MaskedLM with its head) as the training in the folder `run` left them."""
    states = States(Path(run) / STATES_FOLDER)
    step = states.newest()
    if step is None:
        raise UserError(f"{run}: has no state; name a run of --objective mlm")
    encoder = load_encoder(run)
    model = torch.nn.ModuleDict({"encoder": encoder, "objectives": torch.nn.ModuleList([MaskedLM(encoder)])})
    try:
        model.load_state_dict(states.load(step)["model"])
    except RuntimeError:
        raise UserError(f"{run}: no run of --objective mlm alone; name one") from None
    return encoder.eval(), model["objectives"][0].eval()


@torch.inference_mode()
def vary(encoder, language_model, sentences, generator):
    """One variant of each sentence, in their order: a list of strings. Sorted by length they cost least."""
    tokenizer, device = encoder.tokenizer, encoder.device
    tokens = tokenize(sentences, tokenizer, encoder.max_len)
    special = tokenizer.all_special_ids
    found = []
    for start in tqdm(range(0, len(sentences), BATCH), disable=None, desc="variants"):
        ids, mask = pad(tokens, np.arange(start, min(start + BATCH, len(sentences))), tokenizer.pad_token_id)
        shares = generator.uniform(0.1, 0.5, (len(ids), 1))
        hidden = torch.from_numpy(generator.random(ids.shape) < shares) & ~torch.isin(ids, torch.tensor(special))
        seen = ids.masked_fill(hidden, tokenizer.mask_token_id)
        states = encoder.token_states(seen.to(device), mask.to(device))[hidden.to(device)]
        logits = language_model.logits(encoder, states)
        logits[:, special] = -torch.inf
        likeliest = logits.topk(LIKELIEST)
        drawn = likeliest.values.softmax(1).multinomial(1)
        ids[hidden] = likeliest.indices.gather(1, drawn).squeeze(1).cpu()
        found += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [" ".join(variant.split()) for variant in found]


@one_sentence_errors
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", required=True, metavar="RUN")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--variants", type=flags.positive_int, default=3, help="of a sentence")
    args = parser.parse_args(argv)
    encoder, language_model = load_language_model(args.model)
    torch.nn.ModuleList([encoder, language_model]).to(default_device())
    sentences = sorted((s for s in read_sentences(args.data / "kindred.txt") if len(s) <= 120), key=len)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    held_out = set((args.data / "held_out.txt").read_text(encoding="utf-8").split("\n"))
    generator = np.random.default_rng(0)
    torch.manual_seed(0)
    columns = [vary(encoder, language_model, sentences, generator) for _ in range(args.variants)]
    with write_atomically(args.output) as file:
        for sentence, *variants in zip(sentences, *columns):
            kept = {key(variant): variant for variant in variants}
            kept = [v for k, v in kept.items() if len(k) > 2 and k not in held_out and k != key(sentence)]
            if kept:
                file.write(("\t".join([sentence, *kept]) + "\n").encode())


if __name__ == "__main__":
    main()
