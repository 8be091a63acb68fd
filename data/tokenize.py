"""Sentences into packed token ids, computed once and kept on disk."""

import contextlib
import gc
import hashlib
import itertools
import json
import os
import sys
import time
import unicodedata
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm
from transformers import AutoTokenizer

from data.errors import UserError, first_line
from data.files import read_json, write_atomically
from data.hub import fetch_folder
from data.kobert_tokenizer import KOBERT_FILE, KoBERTTokenizer, sentencepiece_file

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json")  # besides SentencePiece's *.model
LEFTOVER_SECONDS = 24 * 3600  # no build of the cache takes so long
CHUNK = 10_000  # sentences handed to a tokenizer at a time
CACHE_FORMAT = 2  # part of the cache's key: raise it when the ids or the files change


class Tokens(NamedTuple):
    """n tokenised sentences without padding; sentence i is ids[offsets[i]:offsets[i + 1]]."""

    ids: np.ndarray  # (total tokens,) integer
    offsets: np.ndarray  # (n + 1,) int64

    @property
    def lengths(self):  # (n,) tokens a sentence
        return np.diff(self.offsets)

    def lengths_of(self, rows):  # (len(rows),)
        return self.offsets[rows + 1] - self.offsets[rows]


def has_tokenizer(folder):
    """Whether a model folder brings a tokenizer along."""
    folder = Path(folder)
    return any((folder / file).is_file() for file in TOKENIZER_FILES) or sentencepiece_file(folder) is not None


def load_tokenizer(name):
    """The tokenizer of a SentencePiece file, a folder or a hub id.

    A `.model` / `.spiece` file, and a BERT's folder with such a file and no other tokenizer, is KoBERT's, and so is one
    with KoBERT's own file, which some publish beside a `vocab.txt`; AutoTokenizer reads everything else.

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
    others = any((folder / file).is_file() for file in TOKENIZER_FILES)
    if is_bert and (file := sentencepiece_file(folder)) and (file.name == KOBERT_FILE or not others):
        return KoBERTTokenizer.from_pretrained(folder)
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # of many kinds
        message = f"{name}: its tokenizer cannot be loaded ({first_line(error)}); name one with --tokenizer"
        raise UserError(message) from None


def tokenize(sentences, tokenizer, max_len, show_progress=False):
    """`Tokens` of a list of strings, in order: special tokens included, cut at `max_len`.

    Every sentence is normalised to Unicode NFC first: text typed on macOS arrives decomposed.

    Raises:
        UserError: a sentence has no token at all.
    """
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.int32
    chunks, lengths = [np.zeros(0, dtype)], [np.zeros(1, np.int64)]
    bar = tqdm(total=len(sentences), desc="tokenise", unit="sentence", disable=None if show_progress else True)
    with bar, _no_garbage_collection():
        for start in range(0, len(sentences), CHUNK):
            chunk = sentences[start : start + CHUNK]
            if isinstance(tokenizer, KoBERTTokenizer):
                chunk_ids, chunk_lengths = tokenizer.pack(chunk, max_len)
            else:
                rows = _token_ids([unicodedata.normalize("NFC", sentence) for sentence in chunk], tokenizer, max_len)
                chunk_lengths = np.fromiter(map(len, rows), np.int64, len(rows))
                chunk_ids = np.fromiter(itertools.chain.from_iterable(rows), dtype, chunk_lengths.sum())
            if not chunk_lengths.all():  # a tokenizer without special tokens
                sentence = chunk[int(chunk_lengths.argmin())]
                raise UserError(
                    f"the sentence {sentence[:40]!r} holds nothing that this model's tokenizer knows; remove it"
                )
            chunks.append(chunk_ids.astype(dtype, copy=False))
            lengths.append(chunk_lengths)
            bar.update(len(chunk))
    return Tokens(np.concatenate(chunks), np.cumsum(np.concatenate(lengths)))


@contextlib.contextmanager
def _no_garbage_collection():
    """Ten thousand new lists a chunk set the collector off, and each time it visits every sentence there is.

    Measured with KoBERT's tokenizer on 9 million sentences: 125,000 a second with it, 376,000 without.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _token_ids(sentences, tokenizer, max_len):
    """`tokenizer(sentences, truncation=True, max_length=max_len)["input_ids"]`, where possible without its detours."""
    if not tokenizer.is_fast:
        return tokenizer(sentences, truncation=True, max_length=max_len)["input_ids"]
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(max_len, direction=tokenizer.truncation_side)
    backend.no_padding()
    return [encoding.ids for encoding in backend.encode_batch_fast(sentences)]  # "fast": without character offsets


def cached_tokens(sentences, tokenizer, max_len):
    """`tokenize`, or its result of an earlier run, memory-mapped.

    The files lie under the environment variable KOSIMCSE_CACHE (default ~/.cache/kosimcse). The key is the
    content: the sentences, the tokenizer's whole definition, the length. Each file appears whole and is the same
    whoever writes it, so a killed or a second process does no harm.
    """
    key = hashlib.sha256(f"{CACHE_FORMAT} {max_len} {_definition(tokenizer)}".encode())
    for start in range(0, len(sentences), CHUNK):
        chunk = sentences[start : start + CHUNK]
        key.update(np.fromiter(map(len, chunk), np.int64, len(chunk)).tobytes())
        key.update("".join(chunk).encode("utf-8", "surrogatepass"))
    try:
        root = Path(os.environ.get("KOSIMCSE_CACHE") or Path.home() / ".cache" / "kosimcse")
    except RuntimeError:  # a container's user who has no home
        return tokenize(sentences, tokenizer, max_len, show_progress=True)
    folder = root / "tokens" / key.hexdigest()[:32]
    tokens = _read_cache(folder, len(sentences))
    if tokens is None:
        tokens = tokenize(sentences, tokenizer, max_len, show_progress=True)
        try:
            _write_cache(folder, tokens)
        except OSError as error:  # a cache is a convenience: a read-only home or a full disk stops nobody
            reason = error.strerror or error
            print(f"token cache {folder.parent} not written ({reason}); tokens kept in memory", file=sys.stderr)
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
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob("*/.*.partial"):  # of a process that was killed
        with contextlib.suppress(FileNotFoundError):  # it was just finished
            if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                leftover.unlink()
    for name, array in tokens._asdict().items():
        with write_atomically(folder / f"{name}.npy") as file:
            np.save(file, array)


def _definition(tokenizer):
    """Everything the ids of a sentence depend on, as a string."""
    if isinstance(tokenizer, KoBERTTokenizer):
        pieces = hashlib.sha256(tokenizer.sp_model.serialized_model_proto()).hexdigest()
        return pieces + str(sorted(tokenizer.added_tokens_encoder.items()))
    if tokenizer.is_fast:
        definition = json.loads(tokenizer.backend_tokenizer.to_str())
        # what the last call left of these two is no part of it
        return json.dumps({**definition, "truncation": tokenizer.truncation_side, "padding": None})
    return json.dumps([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items()), str(tokenizer.init_kwargs)])
