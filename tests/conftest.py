"""Shared fixtures: tiny random encoders made on the spot, a KoBERT-like vocabulary, the optional real data.

Fixtures import what they need, so that the process which only hands out tests to others (pytest-xdist) starts at once.
"""

import os
import signal
from pathlib import Path

import pytest

# of this process and those it starts, before torch reads it: tiny models need no more, and threads survive no fork
os.environ["OMP_NUM_THREADS"] = "1"
if "KOSIMCSE_GPU" not in os.environ:  # what tests compare to the bit is the CPU's; test_gpu.py is the GPU's
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with Ctrl-C ignored
ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "data" / "sample"
SHARED = Path(os.environ.get("KOSIMCSE_SHARED", ROOT.parent / "shared")).resolve()


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """Every test has a token cache and a hub cache of its own, and no network but 127.0.0.1."""
    monkeypatch.setenv("KOSIMCSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("KOSIMCSE_TOKENIZER", raising=False)


@pytest.fixture(scope="session")
def shared():
    """The folder of real Korean data and vocabularies."""
    if not (SHARED / "korean").is_dir():
        pytest.skip(f"needs the real data: KOSIMCSE_SHARED={SHARED} is not there")
    return SHARED


@pytest.fixture(scope="session")
def sample_sentences():
    fields = [line.split("\t") for line in (SAMPLE / "train_nli.tsv").read_text(encoding="utf-8").splitlines()]
    return [sentence for row in fields for sentence in row]


def first_lines(name, n, folder):
    """Copy the first n lines of a file of the sample into a folder; the copy's path."""
    lines = (SAMPLE / name).read_text(encoding="utf-8").splitlines(keepends=True)[:n]
    (folder / name).write_text("".join(lines), encoding="utf-8")
    return folder / name


@pytest.fixture(scope="session")
def few_pairs(tmp_path_factory):
    """A file of 40 scored pairs, for tests that only have to get through an evaluation."""
    return first_lines("valid_sts.tsv", 40, tmp_path_factory.mktemp("few"))


@pytest.fixture(scope="session")
def few_triplets(tmp_path_factory):
    """A file of 96 triplets, for tests that only have to take some steps."""
    return first_lines("train_nli.tsv", 96, tmp_path_factory.mktemp("few"))


@pytest.fixture(scope="session")
def vocabulary_files(tmp_path_factory, sample_sentences):
    """(original, hub): one tiny vocabulary in the two layouts in which KoBERT's circulates."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    from data.kobert_tokenizer import SPECIAL_TOKENS

    folder = tmp_path_factory.mktemp("vocabulary")
    common = {"model_type": "unigram", "minloglevel": 2, "hard_vocab_limit": False, "character_coverage": 1.0}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sample_sentences), model_prefix=str(folder / "original"), vocab_size=1500, **common
    )
    # The hub's layout: the same pieces and scores, reordered as the model's ids are
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((folder / "original.model").read_bytes())
    pieces = {piece.piece: piece for piece in proto.pieces}
    ordinary = sorted(set(pieces) - {"<unk>", "<s>", "</s>"})
    reordered = sentencepiece_model_pb2.ModelProto()
    reordered.CopyFrom(proto)
    del reordered.pieces[:]
    for name in SPECIAL_TOKENS:
        kind = sentencepiece_model_pb2.ModelProto.SentencePiece
        reordered.pieces.add(piece=name, score=0.0, type=kind.UNKNOWN if name == "[UNK]" else kind.CONTROL)
    for name in ordinary:
        reordered.pieces.add().CopyFrom(pieces[name])
    reordered.trainer_spec.unk_piece = "[UNK]"
    reordered.trainer_spec.unk_id, reordered.trainer_spec.pad_id = 0, 1
    reordered.trainer_spec.bos_id = reordered.trainer_spec.eos_id = -1
    reordered.trainer_spec.pad_piece = "[PAD]"
    (folder / "spiece.model").write_bytes(reordered.SerializeToString())
    return folder / "original.model", folder / "spiece.model"


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory, vocabulary_files):
    """A Hugging Face folder: a random BERT of 2 layers x 32 with a KoBERT-like vocabulary."""
    import torch
    from transformers import BertConfig, BertModel

    from data.kobert_tokenizer import KoBERTTokenizer

    folder = tmp_path_factory.mktemp("tiny_bert")
    tokenizer = KoBERTTokenizer.from_pretrained(vocabulary_files[1])
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=1,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def stop_at(step, monkeypatch, action):
    """Call `action` when a training comes to this step."""
    from model.progress import Progress

    original = Progress.step

    def noted(self, now, *args):
        original(self, now, *args)
        if now == step:
            action()

    monkeypatch.setattr(Progress, "step", noted)


@pytest.fixture
def fails(capsys):
    """Run a script's main and return its one error sentence: fails(main, argv, code)."""

    def run(main, argv, code=2):
        with pytest.raises(SystemExit) as exit_info:
            main([str(argument) for argument in argv])
        stderr = capsys.readouterr().err.rstrip("\n").split("\n")
        assert exit_info.value.code == code, stderr
        assert "Traceback" not in "\n".join(stderr)
        return stderr[-1]

    return run
