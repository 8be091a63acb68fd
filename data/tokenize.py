"""Sentences into packed token ids, computed once and kept on disk."""

import hashlib
import itertools
import json
import os
import shutil
import sys
import tempfile
import unicodedata
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm
from transformers import AutoTokenizer

from data.errors import UserError
from data.hub import fetch_folder
from data.kobert_tokenizer import KoBERTTokenizer, sentencepiece_file
from data.tables import read_json

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json")  # besides SentencePiece's *.model
CHUNK = 10_000  # sentences handed to a tokenizer at a time
CACHE_FORMAT = 1  # part of the cache's key: raise it when the ids or the files change


class Tokens(NamedTuple):
    """n tokenised sentences without padding; sentence i is ids[offsets[i]:offsets[i + 1]]."""

    ids: np.ndarray  # (total tokens,) integer
    offsets: np.ndarray  # (n + 1,) int64

    @property
    def lengths(self):  # (n,) tokens a sentence
        return np.diff(self.offsets)


def has_tokenizer(folder):
    """Whether a model folder brings a tokenizer along."""
    folder = Path(folder)
    return any((folder / file).is_file() for file in TOKENIZER_FILES) or sentencepiece_file(folder) is not None


def load_tokenizer(name):
    """The tokenizer of a SentencePiece file, a folder or a hub id.

    A `.model` / `.spiece` file, and a folder with such a file and neither `tokenizer.json` nor `vocab.txt`
    that belongs to a BERT, is KoBERT's; AutoTokenizer reads everything else.

    Raises:
        UserError: no tokenizer there.
        RunError: the hub cannot be reached.
    """
    if Path(name).is_file():
        return KoBERTTokenizer.from_pretrained(name)
    folder = fetch_folder(name, weights=False)
    if not has_tokenizer(folder):  # AutoTokenizer would make an empty one
        raise UserError(f"{name}: no tokenizer there; name one with --tokenizer")
    config = folder / "config.json"
    is_bert = not config.is_file() or read_json(config).get("model_type") == "bert"
    if is_bert and sentencepiece_file(folder) and not any((folder / file).is_file() for file in TOKENIZER_FILES):
        return KoBERTTokenizer.from_pretrained(folder)
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # of many kinds
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(f"{name}: its tokenizer cannot be loaded ({reason}); name one with --tokenizer") from None


def tokenize(sentences, tokenizer, max_len, show_progress=False):
    """Token ids of a list of strings, special tokens included, cut at `max_len`.

    Every sentence is normalised to Unicode NFC first: text typed on macOS arrives decomposed.

    Returns:
        `Tokens` of the sentences in order.
    """
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.int32
    lengths, chunks = [], [np.zeros(0, dtype)]
    with tqdm(total=len(sentences), desc="tokenise", unit="sentence", disable=None if show_progress else True) as bar:
        for start in range(0, len(sentences), CHUNK):
            chunk = sentences[start : start + CHUNK]
            if isinstance(tokenizer, KoBERTTokenizer):
                rows = tokenizer.token_ids(chunk, max_len)
            else:
                chunk = [unicodedata.normalize("NFC", sentence) for sentence in chunk]
                rows = tokenizer(chunk, truncation=True, max_length=max_len, return_attention_mask=False)["input_ids"]
            lengths.extend(map(len, rows))
            chunks.append(np.fromiter(itertools.chain.from_iterable(rows), dtype))
            bar.update(len(chunk))
    offsets = np.zeros(len(sentences) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return Tokens(np.concatenate(chunks), offsets)


def cached_tokens(sentences, tokenizer, max_len):
    """`tokenize`, or its result of an earlier run, memory-mapped.

    The files lie under the environment variable KOSIMCSE_CACHE (default ~/.cache/kosimcse). The key is the
    content: the sentences, the tokenizer's whole definition, the length. A folder appears under its key by
    one rename when it is complete, so a killed or a second process does no harm.
    """
    key = hashlib.sha256(f"{CACHE_FORMAT} {max_len} {_definition(tokenizer)}".encode())
    for sentence in sentences:
        key.update(sentence.encode("utf-8", "surrogatepass") + b"\0")
    root = Path(os.environ.get("KOSIMCSE_CACHE") or Path.home() / ".cache" / "kosimcse")
    folder = root / "tokens" / key.hexdigest()[:32]
    tokens = _read_cache(folder, len(sentences))
    if tokens is None:
        tokens = tokenize(sentences, tokenizer, max_len, show_progress=True)
        try:
            _write_cache(folder, tokens)
        except OSError as error:  # a cache is a convenience: a read-only home or a full disk stops nobody
            print(f"token cache {folder.parent} not written ({error.strerror}); tokens kept in memory", file=sys.stderr)
    return tokens


def _read_cache(folder, n):
    """The n tokenised sentences in `folder`, or None where it is missing or damaged."""
    try:
        # asarray: plain views of the mapped files, without memmap's cost at every access
        tokens = Tokens(*(np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in Tokens._fields))
    except (OSError, ValueError, EOFError):
        return None
    return tokens if len(tokens.offsets) == n + 1 and tokens.offsets[-1] == len(tokens.ids) else None


def _write_cache(folder, tokens):
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix="building-", dir=folder.parent))
    try:
        for name, array in tokens._asdict().items():
            with (building / f"{name}.npy").open("wb") as file:
                np.save(file, array)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():  # damaged, or another process was first: theirs is the same
            folder.rename(building / "replaced")
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
        shutil.rmtree(folder / "replaced", ignore_errors=True)


def _definition(tokenizer):
    """Everything the ids of a sentence depend on, as a string."""
    if isinstance(tokenizer, KoBERTTokenizer):
        pieces = hashlib.sha256(tokenizer.sp_model.serialized_model_proto()).hexdigest()
        return pieces + str(sorted(tokenizer.added_tokens_encoder.items()))
    if tokenizer.is_fast:
        definition = json.loads(tokenizer.backend_tokenizer.to_str())
        return json.dumps({**definition, "truncation": None, "padding": None})  # those two are left by the last call
    return json.dumps([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items()), str(tokenizer.init_kwargs)])
