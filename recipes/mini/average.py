"""mini's weights as they are shipped: the mean of several runs' weights, in float16.

    python -m recipes.mini.average RUN... --output model/mini

Runs that start from the same weights lie in one basin, where the mean is better than its members: Wortsman et al. 2022,
Model soups (arXiv:2203.05482).
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save

from data.errors import UserError, one_sentence_errors
from data.files import write_atomically
from model.checkpoint import SETTINGS_FILE, load_encoder


@one_sentence_errors
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--output", type=Path, required=True, help="folder with config.json and tokenizer")
    args = parser.parse_args(argv)
    encoders = [load_encoder(run) for run in args.runs]
    weights = [encoder.bert.state_dict() for encoder in encoders]
    kinds = [
        (encoder.pooling, encoder.max_len, encoder.tokenizer.get_vocab(), {name: x.shape for name, x in each.items()})
        for encoder, each in zip(encoders, weights)
    ]
    if any(kind != kinds[0] for kind in kinds):
        raise UserError("runs of different models or settings have no mean; name runs of one command and several seeds")
    if not (args.output / "config.json").is_file():
        raise UserError(f"{args.output}: no config.json there; name the folder of the model's configuration")
    mean = {name: torch.stack([each[name] for each in weights]).mean(0) for name in weights[0]}
    with write_atomically(args.output / "model.safetensors") as file:
        file.write(save({name: value.half() for name, value in mean.items()}, {"format": "pt"}))
    settings = {"pooling": encoders[0].pooling, "max_len": encoders[0].max_len}
    (args.output / SETTINGS_FILE).write_text(json.dumps(settings) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
