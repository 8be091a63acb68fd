"""The two functions that the README's demo imports."""

import os

from model.checkpoint import load_encoder  # the one place where data knows of the model
from model.utils import default_device


def convert_to_tensor(corpus, transform):
    """n strings, or one, as {"input_ids", "attention_mask"}, (n, longest) int64 each: what `model.encode` takes.

    `transform` is the second result of `example_model_setting`.
    """
    return transform(corpus)


def example_model_setting(model_ckpt):
    """(model, transform, device): a SentenceEncoder on `device`, what `convert_to_tensor` needs, a torch.device.

    `model_ckpt` is anything `train.py --model` takes. The published checkpoint holds weights only: its tokenizer is
    KoBERT's from the hub, or the file or folder that the environment variable KOSIMCSE_TOKENIZER names.
    """
    device = default_device()
    model = load_encoder(model_ckpt, tokenizer=os.environ.get("KOSIMCSE_TOKENIZER"))
    return model.to(device), model.tokenize, device
