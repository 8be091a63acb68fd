"""Train mini's vocabulary: SentencePiece's Unigram model, written as a Hugging Face `tokenizer.json`.

    python -m recipes.mini.make_vocabulary SENTENCES.txt... --output model/mini

The exact call, the data and their licences stand in model/mini/README.md. With --morphemes no piece crosses a boundary
between morphemes, which Kiwi finds (kiwipiepy, requirements-extra.txt); the tokenizer itself does without it.
"""

import argparse
import io
import itertools
from pathlib import Path

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from data.errors import RunError, one_sentence_errors
from data.files import require_files

BOUNDARY = "\u241f"
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]  # ids 0..4

# NFKC folds full-width and half-width forms; format characters (zero-width space, BOM) vanish; all
# white space and control characters are one space. Case is folded: Latin words are rare in Korean.
NORMALIZER = normalizers.Sequence(
    [
        normalizers.NFKC(),
        normalizers.Replace(Regex(r"\p{Cf}"), ""),
        normalizers.Replace(Regex(r"[\s\p{Cc}]+"), " "),
        normalizers.Strip(),
        normalizers.Lowercase(),
    ]
)


def mark_morphemes(lines):
    """Normalised strings, without empty ones, with BOUNDARY between the morphemes of a word."""
    try:
        from kiwipiepy import Kiwi
    except ImportError:
        raise RunError("--morphemes: needs one more package: pip install kiwipiepy") from None

    lines = [line for line in lines if line]
    for line, morphemes in zip(lines, Kiwi(num_workers=2).tokenize(iter(lines))):
        cuts, end = set(), 0
        for morpheme in morphemes:  # some share a syllable
            start = morpheme.start
            if start >= end and start > 0 and line[start - 1] != " " and line[start : start + 1] != " ":
                cuts.add(start)
            end = max(end, start + morpheme.len)
        cuts = [0, *sorted(cuts), len(line)]
        yield BOUNDARY.join(line[a:b] for a, b in itertools.pairwise(cuts))


def train_pieces(lines, vocab_size, morphemes=False):
    """Unigram pieces (Kudo 2018, arXiv:1804.10959) of an iterable of strings: [(piece, log probability), ...] by id.

    Text is normalised by NORMALIZER first, so SentencePiece itself normalises nothing. Digits are
    pieces of their own: a small model cannot learn a vector for every number. `morphemes`: no piece
    crosses a boundary between two.
    """
    buffer = io.BytesIO()
    lines = (NORMALIZER.normalize_str(line) for line in lines)
    lines = iter(list(mark_morphemes(lines))) if morphemes else lines  # errors inside SentencePiece's loop are lost
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        pretokenization_delimiter=BOUNDARY if morphemes else "",
        model_writer=buffer,
        model_type="unigram",
        vocab_size=vocab_size,
        character_coverage=0.9995,
        normalization_rule_name="identity",
        split_digits=True,
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        pad_piece="[PAD]",
        unk_piece="[UNK]",
        control_symbols=["[CLS]", "[SEP]", "[MASK]"],
        num_threads=1,  # the same pieces on every machine
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=buffer.getvalue())
    pieces = [(processor.id_to_piece(i), round(processor.get_score(i), 4)) for i in range(processor.get_piece_size())]
    assert [piece for piece, _ in pieces[:5]] == SPECIAL_TOKENS
    return pieces


def build_tokenizer(pieces, max_len=128):
    """A Hugging Face tokenizer ([CLS] sentence [SEP]) over `pieces`."""
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=1))
    tokenizer.normalizer = NORMALIZER
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{token.strip('[]').lower()}_token": token for token in SPECIAL_TOKENS}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_len, **names)


@one_sentence_errors
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="text files, one sentence a line")
    parser.add_argument("--vocab_size", type=int, default=12_000)
    parser.add_argument("--morphemes", action="store_true", help="pieces within morphemes")
    parser.add_argument("--max_lines", type=int, default=50_000, help="lines taken from each file, from its start")
    parser.add_argument("--output", type=Path, required=True, help="folder to write the tokenizer into")
    args = parser.parse_args(argv)
    require_files(args.files)

    def lines():
        for path in args.files:
            with path.open(encoding="utf-8") as file:
                yield from itertools.islice(file, args.max_lines)

    tokenizer = build_tokenizer(train_pieces(lines(), args.vocab_size, args.morphemes))
    tokenizer.save_pretrained(args.output)
    compact = tokenizer.backend_tokenizer.to_str(pretty=False)  # save_pretrained indents: 200 KB of white space
    (args.output / "tokenizer.json").write_text(compact + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
