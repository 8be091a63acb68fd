"""KoBERT's tokenizer, which on PyPI nobody publishes, as a Hugging Face tokenizer on plain sentencepiece.

Two files of the same tokenizer circulate, told apart by their first pieces:

- `spiece.model` of `skt/kobert-base-v1`: piece ids are the model's ids;
- `tokenizer_78b3253a26.model` of the older `kobert` package: ids of its own. The model's vocabulary is
  SPECIAL_TOKENS, then this file's ordinary pieces in code-point order.
"""

import itertools
import unicodedata
from pathlib import Path

import numpy as np
import sentencepiece
from transformers import PreTrainedTokenizer

from data.errors import UserError
from data.hub import fetch_folder

SPECIAL_TOKENS = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]  # ids 0..4
UNK, PAD, CLS, SEP, MASK = range(5)
KOBERT_FILE = "tokenizer_78b3253a26.model"


class KoBERTTokenizer(PreTrainedTokenizer):
    """`[CLS] pieces [SEP]` with KoBERT's ids; a Hugging Face tokenizer in everything else.

    Args:
        vocab_file: either of the two SentencePiece files.

    Raises:
        UserError: the file is not a SentencePiece model, or has neither of the two layouts.
    """

    vocab_files_names = {"vocab_file": "spiece.model"}
    model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    padding_side = "right"

    def __init__(self, vocab_file, model_max_length=512, **kwargs):
        self.vocab_file = str(vocab_file)
        try:
            self.sp_model = sentencepiece.SentencePieceProcessor(model_file=self.vocab_file)
        except (RuntimeError, OSError):
            raise UserError(f"{vocab_file}: not a SentencePiece model") from None
        pieces = [self.sp_model.id_to_piece(i) for i in range(self.sp_model.get_piece_size())]
        if pieces[:5] == SPECIAL_TOKENS:
            self.pieces = pieces  # by model id
        elif pieces[:3] == ["<unk>", "<s>", "</s>"]:
            self.pieces = SPECIAL_TOKENS + sorted(pieces[3:])
        else:
            raise UserError(
                f"{vocab_file}: not a KoBERT vocabulary (first pieces {pieces[:5]}; expected {SPECIAL_TOKENS}, "
                f"or <unk> <s> </s>); other models need their own tokenizer folder"
            )
        self.ids = {piece: i for i, piece in enumerate(self.pieces)}
        # sentencepiece's id -> the model's id; what only that file has (<unk>, <s>, </s>) is [UNK]
        self.model_ids = np.array([self.ids.get(piece, UNK) for piece in pieces], dtype=np.int32)
        names = {f"{token.strip('[]').lower()}_token": token for token in SPECIAL_TOKENS}
        kwargs = {**names, "special_tokens_pattern": "cls_sep", **kwargs}  # [CLS] A [SEP], or [CLS] A [SEP] B [SEP]
        super().__init__(model_max_length=model_max_length, **kwargs)

    @classmethod
    def from_pretrained(cls, name, **kwargs):
        """From a `.model` / `.spiece` file, a folder that holds one, or a hub id such as `skt/kobert-base-v1`."""
        path = Path(name)
        if not path.is_file():
            folder = fetch_folder(name, weights=False)
            path = sentencepiece_file(folder)
            if path is None:
                raise UserError(f"{folder}: holds no SentencePiece file (spiece.model or one *.model)")
        return cls(path, **kwargs)

    def pack(self, sentences, max_len):
        """The fast path: model ids of many sentences, as `self(sentences, truncation=True, ...)["input_ids"]` has them.

        Args:
            sentences: list of n strings.
            max_len: longest result, [CLS] and [SEP] included.

        Returns:
            (ids, lengths): the ids of all sentences in a row, (total,) int32, and how many each has, (n,) int64.
        """
        sentences = [unicodedata.normalize("NFC", sentence) for sentence in sentences]
        everything = "\0".join(sentences)
        if any(token in everything for token in self.added_tokens_encoder):  # "[MASK]": sentencepiece does not know it
            to_model = np.arange(len(self), dtype=np.int32)
            rows = self(sentences, truncation=True, max_length=max_len)["input_ids"]
        else:
            to_model = np.concatenate([self.model_ids, np.array([CLS, SEP], dtype=np.int32)])
            cls, sep = len(self.model_ids), len(self.model_ids) + 1
            rows = [[cls, *ids[: max_len - 2], sep] for ids in self.sp_model.encode(sentences)]
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        return to_model[np.fromiter(itertools.chain.from_iterable(rows), np.int32, lengths.sum())], lengths

    # What PreTrainedTokenizer asks of a subclass

    @property
    def vocab_size(self):
        return len(self.pieces)

    def get_vocab(self):
        return {**self.ids, **self.added_tokens_encoder}

    def prepare_for_tokenization(self, text, is_split_into_words=False, **kwargs):
        return unicodedata.normalize("NFC", text), kwargs

    def _tokenize(self, text, **kwargs):
        return [self.pieces[self.model_ids[i]] for i in self.sp_model.encode(text)]

    def _convert_token_to_id(self, token):
        return self.ids.get(token, UNK)

    def _convert_id_to_token(self, index):
        return self.pieces[index]

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens).replace("▁", " ").strip()

    def save_vocabulary(self, save_directory, filename_prefix=None):
        # the original's ids are not the model's: under the hub's name other readers would take them for it
        name = "spiece.model" if self.sp_model.id_to_piece(0) == "[UNK]" else KOBERT_FILE
        target = Path(save_directory) / f"{filename_prefix + '-' if filename_prefix else ''}{name}"
        target.write_bytes(self.sp_model.serialized_model_proto())
        return (str(target),)


def sentencepiece_file(folder):
    """The folder's SentencePiece file: `spiece.model`, else its only `*.model` or `*.spiece`; None if there is none."""
    named = Path(folder) / "spiece.model"
    found = [named] if named.is_file() else [*Path(folder).glob("*.model"), *Path(folder).glob("*.spiece")]
    return found[0] if len(found) == 1 else None
