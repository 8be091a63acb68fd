"""Encoders from and to disk. `load_encoder` takes every form a model can have here; nothing ever unpickles code."""

import contextlib
import json
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    BartModel,
    BertConfig,
    MT5EncoderModel,
    T5EncoderModel,
)
from transformers.models.bart.modeling_bart import BartEncoder
from transformers.utils import logging as transformers_logging

from data.errors import RunError, UserError, first_line
from data.files import read_json, write_atomically
from data.hub import fetch_folder
from data.tokenize import has_tokenizer, load_tokenizer
from model.encoder import SentenceEncoder, check_backbone, max_positions
from model.foreign import sentence_transformers_settings

MINI = Path(__file__).parent / "mini"
CHECKPOINT_FILE = "nli_checkpoint.pt"
MODEL_FOLDER = "model"
SETTINGS_FILE = "sentence_encoder.json"  # beside the weights of a folder that we saved: pooling and max_len
TRIED = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "deberta-v2", "distilbert", "albert", "mpnet")
KOBERT_HUB_ID = "skt/kobert-base-v1"
KOBERT_CONFIG = {"vocab_size": 8002, "pad_token_id": 1}  # else BERT-base: 12 layers x 768, 12 heads, 512 positions
SAVED_SETTINGS = {"config", "pooling", "max_len", "tokenizer_files"}  # of a `.pt`, beside its weights


def load_encoder(
    name, pooling=None, max_len=None, tokenizer=None, dropout=None, training=False, dims=None, random_weights=False
):
    """A SentenceEncoder on the CPU, in eval mode.

    Args:
        name: `mini` (our small encoder, model/mini), a run folder, a `.pt` checkpoint (ours, or the published one,
            which holds weights only and is KoBERT's), a folder of Hugging Face or sentence-transformers, or a hub id.
        pooling, max_len: None takes what was saved with the model, else "pooler" and 50.
        tokenizer: file, folder or hub id, for a model that comes without one (a bare `.pt`: None takes KoBERT's
            from the hub). A model's own is never replaced.
        dropout: set for every dropout in the backbone; None leaves its configuration alone.
        dims: sizes that embeddings will be cut at, to be refused where they are too large.
        training: a pooler that the weights lack is initialised at random, and said so, instead of refused.
        random_weights: a model's architecture and tokenizer, but not its weights.

    Raises:
        UserError: no such model, damaged or foreign weights, an impossible pooling, length or size.
        RunError: the hub cannot be reached.
    """
    path = Path(name)
    source = MINI if str(name) == "mini" else path if path.is_file() else fetch_folder(name, weights=False)
    if (source / MODEL_FOLDER / SETTINGS_FILE).is_file():
        source = source / MODEL_FOLDER
    elif source.is_dir() and not (source / "config.json").is_file() and (source / CHECKPOINT_FILE).is_file():
        source = source / CHECKPOINT_FILE
    with tempfile.TemporaryDirectory() as unpacked:
        if source.is_dir():
            weights, (saved, folder, ours) = None, _folder_settings(source)
        else:
            (weights, saved), folder, ours = _unpack(source, Path(unpacked)), Path(unpacked), True
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # of many kinds
            raise UserError(f"{source}: not a model folder ({first_line(error)})") from None
        make = _backbone_class(source, config, ours)
        if not ours and "max_len" in saved:  # a tokenizer may allow more than the model
            saved["max_len"] = min(saved["max_len"], max_positions(config))
        tokenizer = _own_tokenizer(source, folder, tokenizer, weights is not None)
    if not training and not pooling and "pooling" not in saved:
        print(f"{source}: does not say how to pool; taking --pooling pooler (others: cls, mean)", file=sys.stderr)
    pooling, max_len = pooling or saved.get("pooling", "pooler"), max_len or saved.get("max_len", 50)
    before = (saved.get("pooling", pooling), saved.get("max_len", max_len))
    if training and not random_weights and before != (pooling, max_len):
        print(
            f"{source} was trained with --pooling {before[0]} --max_len {before[1]}; "
            f"this training goes on with --pooling {pooling} --max_len {max_len}",
            file=sys.stderr,
        )
    _check_architecture(source, config, make, pooling, max_len, dims)
    if dropout is not None:
        for key, value in config.to_dict().items():
            if "dropout" in key and isinstance(value, (int, float)):
                setattr(config, key, dropout)
    if random_weights:
        backbone = _encoder_alone(make(config))
    else:
        if str(name) != "mini" and not path.exists():
            fetch_folder(name)  # the weights, beside what the checks above looked at
        folder = folder if weights is None else None
        backbone = _load_backbone(source, make, folder, config, weights, pooling, training, ours)
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"{source}: the tokenizer's vocabulary ({len(tokenizer):,}) is larger than the model's "
            f"({config.vocab_size:,}); with --tokenizer name the one it was trained with"
        )
    if tokenizer.pad_token_id is None:
        raise UserError(f"{source}: the tokenizer has no padding token; with --tokenizer name the model's own")
    return SentenceEncoder(backbone, tokenizer, pooling, max_len, bool(saved.get("normalize"))).eval()


def save_encoder(encoder, run_folder):
    """Write `model/` and `nli_checkpoint.pt` into a run folder, each file whole or not at all.

    Raises:
        RunError: a write failed (a full disk); what was there before is still there.
    """
    run_folder = Path(run_folder)
    run_folder.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=run_folder))
    try:
        encoder.tokenizer.save_pretrained(building)
        tokenizer_files = {file.name: file.read_bytes() for file in building.iterdir()}
        with _quiet_transformers():
            encoder.bert.save_pretrained(building)
        settings = {"pooling": encoder.pooling, "max_len": encoder.max_len}
        settings |= {"normalize": True} if encoder.normalize else {}
        (building / SETTINGS_FILE).write_text(json.dumps(settings) + "\n", encoding="utf-8")
        for file in building.iterdir():
            shutil.copymode(building / SETTINGS_FILE, file)  # safetensors makes files that nobody else may read
            with file.open("rb") as opened:
                os.fsync(opened.fileno())

        weights = {f"bert.{key}": value.cpu() for key, value in encoder.bert.state_dict().items()}
        extra = {"config": encoder.bert.config.to_json_string(), **settings, "tokenizer_files": tokenizer_files}
        with write_atomically(run_folder / CHECKPOINT_FILE) as file:
            torch.save({"model": weights, "encoder": extra}, file)
        # all bytes are on disk: from here on there are only renames
        (run_folder / MODEL_FOLDER).mkdir(exist_ok=True)
        for file in building.iterdir():
            file.replace(run_folder / MODEL_FOLDER / file.name)
    except Exception as error:
        if type(error) is not Exception and not isinstance(error, (OSError, SafetensorError, RuntimeError)):
            raise  # a bare Exception is what the tokenizers library raises when the disk is full
        raise RunError(
            f"{run_folder}: the checkpoint could not be written ({first_line(error)}); what was there is intact"
        ) from None
    finally:
        shutil.rmtree(building, ignore_errors=True)


def load_weights(encoder, run_folder):
    """What `save_encoder` wrote, strictly, into an encoder of the same architecture."""
    weights, _ = _read_pt(Path(run_folder) / CHECKPOINT_FILE)
    try:
        encoder.bert.load_state_dict(weights)
    except RuntimeError:
        raise UserError(f"{run_folder}/{CHECKPOINT_FILE}: is of another model than this run's") from None


def _folder_settings(folder):
    """(what was saved with a folder's model, the folder of its transformer, whether it is we who saved it)."""
    if (folder / "train_config.json").is_file() and not (folder / "config.json").is_file():
        raise UserError(f"{folder}: this run was stopped before its first checkpoint; train again")
    if (folder / SETTINGS_FILE).is_file():
        return read_json(folder / SETTINGS_FILE), folder, True
    if (folder / "modules.json").is_file():
        return *sentence_transformers_settings(folder), False
    return {}, folder, False


def _backbone_class(name, config, ours):
    """The class of an encoder's transformer; of an encoder-decoder, its encoder alone (what we saved holds no more)."""
    if config.model_type in ("t5", "mt5"):
        return {"t5": T5EncoderModel, "mt5": MT5EncoderModel}[config.model_type]
    if config.model_type == "bart":
        return BartEncoder if ours else BartModel
    # what can be trained as a masked language model reads in both directions
    if config.is_encoder_decoder or type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        raise UserError(
            f"{name}: {config.model_type} is not a text encoder; BERT, RoBERTa, ELECTRA, DeBERTa, BART, T5 are"
        )
    if config.model_type not in TRIED:
        print(
            f"{name}: {config.model_type} was not tried; are embeddings the same alone and in a batch?", file=sys.stderr
        )
    return MODEL_MAPPING[type(config)]


def _check_architecture(name, config, make, pooling, max_len, dims):
    """Raise UserError before any weight loads where a model of this configuration cannot do what is asked."""
    if not isinstance(max_len, int):
        raise UserError(f"{name}: its maximum length is {max_len!r}; expected a whole number")
    try:
        with torch.device("meta"):  # without memory for weights
            backbone = make(config)
    except Exception as error:  # of many kinds
        raise UserError(f"{name}: its configuration cannot be used ({first_line(error)})") from None
    check_backbone(_encoder_alone(backbone), pooling, max_len)
    if dims and max(dims) > config.hidden_size:
        raise UserError(
            f"embeddings cannot be cut at {max(dims)}: this model's have {config.hidden_size} numbers; "
            "give --matryoshka, or --dim, smaller sizes"
        )


def _encoder_alone(backbone):
    return backbone.get_encoder() if isinstance(backbone, BartModel) else backbone


def _load_backbone(name, make, folder, config, weights, pooling, training, ours):
    """The transformer, with its weights from `folder` or from the dict `weights`, checked tensor by tensor.

    Where the weights are `ours`, those the model has no place for are refused; a pretrained model may bring heads
    (MLM) along.
    """
    try:
        with _quiet_transformers():
            backbone, info = make.from_pretrained(
                folder,
                config=config,
                state_dict=weights,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
            )
    except Exception as error:  # truncated, missing, of other shapes: the libraries raise many kinds
        reason = "it holds Python objects besides tensors" if "weights_only" in str(error) else first_line(error)
        raise UserError(f"{name}: these weights cannot be loaded ({reason})") from None
    missing, unexpected = (
        {key for key in info[keys] if not key.startswith("pooler.")} for keys in ("missing_keys", "unexpected_keys")
    )
    for key, found, expected in sorted(info["mismatched_keys"]):  # they come in any order
        raise UserError(
            f"{name}: {key} has the shape {tuple(found)}, its configuration says {tuple(expected)}; get both anew"
        )
    if missing or (ours and unexpected):
        architecture = f"{config.model_type}, {config.num_hidden_layers} layers x {config.hidden_size}"
        raise UserError(
            f"{name}: the weights are not this architecture's ({architecture}): "
            f"{len(missing)} missing, {len(unexpected)} unexpected, such as {min(missing or unexpected)}"
        )
    if pooling == "pooler" and any(key.startswith("pooler.") for key in info["missing_keys"]):
        if not training:
            raise UserError(f"{name}: the weights have no pooler; choose another --pooling, such as cls or mean")
        print(f"{name}: the weights have no pooler; it starts at random and is trained", file=sys.stderr)
    if not all(p.detach().sum().isfinite() for p in _encoder_alone(backbone).parameters()):
        raise UserError(f"{name}: its weights hold numbers that are infinite or none at all; get them anew")
    if backbone.config._attn_implementation != "sdpa":
        print(f"{name}: transformers has only plain, slower attention for {config.model_type}", file=sys.stderr)
    return _encoder_alone(backbone)


def _own_tokenizer(name, folder, given, is_file):
    """The model's own tokenizer; where it has none, the one given with --tokenizer, or, for a file, KoBERT's."""
    if has_tokenizer(folder):
        if given is not None:
            print(f"{name} has its own tokenizer; {given} is not used for it", file=sys.stderr)
        try:
            return load_tokenizer(folder)
        except UserError as error:
            raise UserError(f"{name}: its tokenizer cannot be used, get it anew ({error})") from None
    if given is None and not is_file:
        raise UserError(f"{name}: comes without a tokenizer; name one with --tokenizer")
    if given is None:
        other = "--tokenizer FILE, FOLDER or ID, in the demo the environment variable KOSIMCSE_TOKENIZER"
        print(f"{name} holds weights only: taking the tokenizer of {KOBERT_HUB_ID} (another: {other})", file=sys.stderr)
    return load_tokenizer(given or KOBERT_HUB_ID)


def _unpack(path, folder):
    """(weights, settings) of a `.pt` file; configuration and tokenizer go into `folder`."""
    weights, saved = _read_pt(path)
    if not saved:  # the published one
        saved = {"config": BertConfig(**KOBERT_CONFIG).to_json_string(), "pooling": "pooler", "tokenizer_files": {}}
    (folder / "config.json").write_text(saved["config"], encoding="utf-8")
    for file, content in saved["tokenizer_files"].items():
        (folder / Path(file).name).write_bytes(content)
    return weights, saved


def _read_pt(path):
    """A `.pt` file as (weights without their `bert.`, what else was saved or {}). Code in it is refused, not run."""
    if path.suffix == ".safetensors":
        raise UserError(f"{path}: weights alone; name the folder they are in")
    try:
        # tensors are mapped from disk, so an optimiser's state beside the weights costs nothing
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError:
        raise
    except Exception:  # the unpickler stumbles over foreign bytes in every way there is
        raise UserError(
            f"{path}: not a whole PyTorch checkpoint of tensors: it is damaged, of another kind, or holds Python "
            "objects, which are refused because loading them could run code"
        ) from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise UserError(f"{path}: no checkpoint of an encoder: expected {{'model': {{'bert.NAME': tensor, ...}}}}")
    for key, value in content["model"].items():
        if not isinstance(key, str) or not key.startswith("bert.") or not isinstance(value, torch.Tensor):
            raise UserError(f"{path}: holds {key!r}; expected tensors named bert.*, as this repository writes them")
    saved = content.get("encoder", {})
    if "encoder" in content and (not isinstance(saved, dict) or not SAVED_SETTINGS <= set(saved)):
        raise UserError(f"{path}: its 'encoder' part is not as this repository writes it; copy the file again")
    weights = {key.removeprefix("bert."): value for key, value in content["model"].items()}
    weights.pop("embeddings.position_ids", None)  # a buffer that old versions of transformers saved
    return weights, saved


@contextlib.contextmanager
def _quiet_transformers():
    """No load report and no bar: what they say is checked above."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
