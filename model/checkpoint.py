"""Encoders from and to disk. `load_encoder` takes every form a model can have here; nothing ever unpickles code."""

import contextlib
import json
import os
import pickle
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, BertConfig
from transformers.utils import logging as transformers_logging

from data.errors import RunError, UserError
from data.hub import fetch_folder
from data.tokenize import load_tokenizer
from model.encoder import SentenceEncoder

MINI = Path(__file__).parent / "mini"
CHECKPOINT_FILE = "nli_checkpoint.pt"
MODEL_FOLDER = "model"
SETTINGS_FILE = "sentence_encoder.json"  # beside the weights of a folder that we saved: pooling and max_len
KOBERT_HUB_ID = "skt/kobert-base-v1"
KOBERT_CONFIG = {"vocab_size": 8002, "pad_token_id": 1}  # else BERT-base: 12 layers x 768, 12 heads, 512 positions
DROPOUT_NAMES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "dropout_rate")


def load_encoder(name, pooling=None, max_len=None, tokenizer=None, dropout=None, training=False):
    """A SentenceEncoder on the CPU, in eval mode.

    Args:
        name: `mini` (our small BERT, random weights), a run folder, a `.pt` checkpoint (ours, or the published
            one, which holds weights only and is KoBERT's), a folder of Hugging Face or sentence-transformers, or a
            hub id.
        pooling, max_len: None takes what was saved with the model, else "pooler" and 50.
        tokenizer: file, folder or hub id; None takes the model's own (for a bare `.pt` KoBERT's, from the hub).
        dropout: set for every dropout in the backbone; None leaves its configuration alone.
        training: a pooler that the weights lack is initialised at random, and said so, instead of refused.

    Raises:
        UserError: no such model, damaged or foreign weights, an impossible pooling or length.
        RunError: the hub cannot be reached.
    """
    if name == "mini":
        config = AutoConfig.from_pretrained(MINI)
        _set_dropout(config, dropout)
        with torch.random.fork_rng(devices=[], enabled=not training):
            if not training:  # the same random weights every time; a training's are its seed's
                torch.manual_seed(1234)
            backbone = AutoModel.from_config(config)
        return _assemble(backbone, load_tokenizer(tokenizer or MINI), pooling or "pooler", max_len or 50)
    path = Path(name)
    if path.is_file():
        return _load_file(path, pooling, max_len, tokenizer, dropout, training)
    folder = fetch_folder(name)
    if (folder / MODEL_FOLDER / SETTINGS_FILE).is_file():
        folder = folder / MODEL_FOLDER
    elif not (folder / "config.json").is_file() and (folder / CHECKPOINT_FILE).is_file():
        return _load_file(folder / CHECKPOINT_FILE, pooling, max_len, tokenizer, dropout, training)
    return _load_folder(folder, pooling, max_len, tokenizer, dropout, training)


def save_encoder(encoder, run_folder):
    """Write `model/` and `nli_checkpoint.pt` into a run folder, each file whole or not at all.

    Raises:
        RunError: a write failed (a full disk); what was there before is still there.
    """
    run_folder = Path(run_folder)
    building = run_folder / f"{MODEL_FOLDER}.building"
    try:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        encoder.tokenizer.save_pretrained(building)
        tokenizer_files = {file.name: file.read_bytes() for file in building.iterdir()}
        with _quiet_transformers():
            encoder.bert.save_pretrained(building)
        settings = {"pooling": encoder.pooling, "max_len": encoder.max_len}
        (building / SETTINGS_FILE).write_text(json.dumps(settings) + "\n", encoding="utf-8")
        _replace_folder(building, run_folder / MODEL_FOLDER)

        weights = {f"bert.{key}": value.cpu() for key, value in encoder.bert.state_dict().items()}
        extra = {"config": encoder.bert.config.to_json_string(), **settings, "tokenizer_files": tokenizer_files}
        with write_atomically(run_folder / CHECKPOINT_FILE) as file:
            torch.save({"model": weights, "encoder": extra}, file)
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(building, ignore_errors=True)
        raise RunError(
            f"{run_folder}: the checkpoint could not be written ({_first_line(error)}); the one before it is intact"
        ) from None


@contextlib.contextmanager
def write_atomically(path):
    """A binary file to write that takes its name only when it is complete: temporary name, fsync, rename."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def is_ours(checkpoint):
    """Whether a `.pt` file was written by save_encoder; false for anything unreadable."""
    try:
        return "encoder" in _read_pt(checkpoint)
    except UserError:
        return False


def _replace_folder(source, target):
    """Move the files of `source` over those of `target`, the weights last, and drop what `source` does not have."""
    target.mkdir(exist_ok=True)
    files = sorted(source.iterdir(), key=lambda file: file.suffix == ".safetensors")
    for file in files:
        shutil.copymode(source / SETTINGS_FILE, file)  # safetensors makes files nobody else may read
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    for stale in {file.name for file in target.iterdir()} - {file.name for file in files}:
        (target / stale).unlink()
    for file in files:
        file.replace(target / file.name)
    source.rmdir()


def _load_file(path, pooling, max_len, tokenizer, dropout, training):
    """Our `nli_checkpoint.pt`, or the published one."""
    content = _read_pt(path)
    saved = content.get("encoder", {})
    # position_ids: a buffer that old versions of transformers saved
    weights = {key: value for key, value in content["model"].items() if key != "bert.embeddings.position_ids"}
    foreign = [key for key in weights if not key.startswith("bert.")]
    if foreign:
        raise UserError(f"{path}: holds {foreign[0]!r}; expected weights named bert.*, as this repository writes them")
    weights = {key.removeprefix("bert."): value for key, value in weights.items()}
    config = AutoConfig.for_model(**json.loads(saved["config"])) if saved else BertConfig(**KOBERT_CONFIG)
    with tempfile.TemporaryDirectory() as folder:
        for name, file_content in saved.get("tokenizer_files", {}).items():
            (Path(folder) / Path(name).name).write_bytes(file_content)
        try:
            tokenizer = load_tokenizer(tokenizer or (folder if saved else KOBERT_HUB_ID))
        except RunError as error:
            raise RunError(
                f"{path} holds no tokenizer; name one with --tokenizer FILE, FOLDER or ID ({error})"
            ) from None
    pooling = pooling or saved.get("pooling", "pooler")
    backbone = _load_backbone(path, None, config, weights, pooling, dropout, training, strict=True)
    return _assemble(backbone, tokenizer, pooling, max_len or saved.get("max_len", 50))


def _load_folder(folder, pooling, max_len, tokenizer, dropout, training):
    """A folder of ours, of Hugging Face, or of sentence-transformers."""
    saved, backbone_folder = {}, folder
    ours = (folder / SETTINGS_FILE).is_file()
    if ours:
        saved = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    elif (folder / "modules.json").is_file():
        backbone_folder, saved = _sentence_transformers_settings(folder)
    try:
        config = AutoConfig.from_pretrained(backbone_folder)
    except Exception as error:  # of many kinds
        raise UserError(f"{folder}: not a model folder ({_first_line(error)})") from None
    pooling = pooling or saved.get("pooling", "pooler")
    backbone = _load_backbone(folder, backbone_folder, config, None, pooling, dropout, training, strict=ours)
    return _assemble(
        backbone, load_tokenizer(tokenizer or backbone_folder), pooling, max_len or saved.get("max_len", 50)
    )


def _load_backbone(name, folder, config, weights, pooling, dropout, training, strict):
    """The transformer, with its weights from `folder` or from the dict `weights`, checked tensor by tensor.

    `strict` refuses weights the model has no place for; a pretrained model may bring heads (MLM) along.
    """
    if config.is_encoder_decoder or type(config) not in MODEL_MAPPING:
        raise UserError(f"{name}: {config.model_type} is not a plain encoder; BERT, RoBERTa, ELECTRA and the like are")
    _set_dropout(config, dropout)
    try:
        with _quiet_transformers():
            backbone, info = MODEL_MAPPING[type(config)].from_pretrained(
                folder, config=config, state_dict=weights, dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:  # truncated, missing, of other shapes: the libraries raise many kinds
        raise UserError(f"{name}: these weights cannot be loaded ({_first_line(error)})") from None
    missing = {key for key in info["missing_keys"] if not key.startswith("pooler.")}
    lacks_pooler = any(key.startswith("pooler.") for key in info["missing_keys"])
    unexpected = {key for key in info["unexpected_keys"] if strict}
    if pooling != "pooler":
        unexpected = {key for key in unexpected if not key.startswith("pooler.")}
    if missing or unexpected:
        architecture = f"{config.model_type}, {config.num_hidden_layers} layers x {config.hidden_size}"
        raise UserError(
            f"{name}: the weights are not this architecture's ({architecture}): "
            f"{len(missing)} missing, {len(unexpected)} unexpected, such as {sorted(missing | unexpected)[0]}"
        )
    if lacks_pooler and pooling == "pooler":
        if not training:
            raise UserError(f"{name}: the weights have no pooler; choose --pooling cls or mean")
        print(f"{name}: the weights have no pooler; it starts at random and is trained", file=sys.stderr)
    return backbone


def _assemble(backbone, tokenizer, pooling, max_len):
    """The encoder in eval mode, after a look at whether tokenizer and model belong together."""
    if len(tokenizer) > backbone.config.vocab_size:
        raise UserError(
            f"--tokenizer: its vocabulary ({len(tokenizer):,}) is larger than the model's "
            f"({backbone.config.vocab_size:,}); give the tokenizer this model was trained with"
        )
    if tokenizer.pad_token_id is None:
        raise UserError("--tokenizer: it has no padding token; give the tokenizer this model was trained with")
    return SentenceEncoder(backbone, tokenizer, pooling, max_len).eval()


def _read_pt(path):
    """The content of a `.pt` file: a dict with "model", tensors mapped from disk. Code in it is refused, not run."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: refused: it is damaged, or holds Python objects besides tensors, which could run code on loading "
            f"({_first_line(error)})"
        ) from None
    except (RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"{path}: not a whole PyTorch checkpoint ({_first_line(error)}); copy it again") from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise UserError(f"{path}: no checkpoint of an encoder: expected a dict with the weights under 'model'")
    return content


def _sentence_transformers_settings(folder):
    """(folder of the transformer, {"pooling", "max_len"}) of a sentence-transformers folder.

    Raises:
        UserError: it does something after or beside the transformer that we do not.
    """
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    kinds = {module["type"].split(".")[-1]: folder / module["path"] for module in modules}
    if set(kinds) != {"Transformer", "Pooling"}:
        raise UserError(f"{folder}: has the modules {', '.join(kinds)}; expected Transformer and Pooling alone")
    config = json.loads((kinds["Pooling"] / "config.json").read_text(encoding="utf-8"))
    mode = config.get("pooling_mode")  # one string since version 5.5, one boolean a mode before
    if mode is None:
        on = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
        names = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
        mode = names.get(on[0]) if len(on) == 1 else None
    if mode not in ("cls", "mean"):
        raise UserError(f"{folder}: its pooling is not one of ours (cls or mean): {config}")
    settings = {"pooling": mode}
    # the length: in a file of its own, or as the tokenizer's, where a huge number means none
    for file, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        path = kinds["Transformer"] / file
        length = json.loads(path.read_text(encoding="utf-8")).get(key) if path.is_file() else None
        if length and length < 1_000_000:
            return kinds["Transformer"], {**settings, "max_len": length}
    return kinds["Transformer"], settings


def _set_dropout(config, dropout):
    if dropout is not None:
        for name in DROPOUT_NAMES:
            if hasattr(config, name):
                setattr(config, name, dropout)


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


def _first_line(error):
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
