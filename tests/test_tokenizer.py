"""KoBERT's tokenizer: ids, both circulating files, and the ways of a Hugging Face tokenizer."""

import json
import multiprocessing
import os
import shutil
import signal
import time
import unicodedata

import numpy as np
import pytest

from data import tokenize as tokenize_module
from data.errors import UserError
from data.kobert_tokenizer import SPECIAL_TOKENS, KoBERTTokenizer
from data.sts import read_sts
from data.tokenize import cached_tokens, load_tokenizer, tokenize
from model.checkpoint import MINI

PUBLISHED = ("한국어 모델을 공유합니다.", [2, 4958, 6855, 2046, 7088, 1050, 7843, 54, 3])
ODD = ["", " ", "a [MASK] b", "[SEP]", "[CLS", "뷁 쀍", "🙂", "두\t칸\u3000띄고", "x" * 3000]


@pytest.fixture(params=["original", "hub"])
def tokenizer(request, vocabulary_files):
    return KoBERTTokenizer.from_pretrained(vocabulary_files[request.param == "hub"])


def packed(tokenizer, sentences, max_len):
    """The fast path's ids, a list for each sentence."""
    ids, lengths = tokenizer.pack(sentences, max_len)
    return [row.tolist() for row in np.split(ids, np.cumsum(lengths)[:-1])]


def test_published_ids(shared):
    tokenizer = KoBERTTokenizer.from_pretrained(shared / "kobert")
    assert tokenizer(PUBLISHED[0])["input_ids"] == PUBLISHED[1]
    assert packed(tokenizer, [PUBLISHED[0]], 50) == [PUBLISHED[1]]
    vocabulary = json.loads((shared / "kobert" / "kobertvocab_f38b8a4d6d.json").read_text(encoding="utf-8"))
    assert tokenizer.convert_ids_to_tokens(list(range(8002))) == vocabulary["idx_to_token"]


def test_fast_path_equals_hugging_face_path_on_all_of_korsts(shared):
    folder = shared / "korean" / "KorNLU" / "KorSTS"
    pairs = read_sts([folder / f"sts-{part}.tsv" for part in ("train", "dev", "test")])
    sentences = [*pairs.sentences1, *pairs.sentences2]
    tokenizer = KoBERTTokenizer.from_pretrained(shared / "kobert")
    assert packed(tokenizer, sentences, 50) == tokenizer(sentences, truncation=True, max_length=50)["input_ids"]


def test_both_files_give_the_same_ids(vocabulary_files, sample_sentences):
    original, hub = map(KoBERTTokenizer.from_pretrained, vocabulary_files)
    assert packed(original, sample_sentences, 50) == packed(hub, sample_sentences, 50)
    assert original.get_vocab() == hub.get_vocab()


def test_fast_path_equals_hugging_face_path(tokenizer, sample_sentences):
    sentences = [*sample_sentences, *ODD]
    for max_len in (8, 50):
        expected = tokenizer(sentences, truncation=True, max_length=max_len)["input_ids"]
        assert packed(tokenizer, sentences, max_len) == expected


def test_ids_are_the_pieces_in_code_point_order(vocabulary_files):
    tokenizer = KoBERTTokenizer.from_pretrained(vocabulary_files[0])
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    assert names[:5] == SPECIAL_TOKENS
    assert names[5:] == sorted(names[5:])


def test_call_batch_pad_truncate(tokenizer, sample_sentences):
    batch = tokenizer(sample_sentences[:2], padding=True, truncation=True, max_length=9, return_tensors="pt")
    assert batch["input_ids"].shape == batch["attention_mask"].shape == batch["token_type_ids"].shape
    assert batch["input_ids"].shape[1] <= 9
    assert (batch["input_ids"][batch["attention_mask"] == 0] == tokenizer.pad_token_id).all()
    padded = tokenizer("가", padding="max_length", max_length=7)
    assert padded["input_ids"][-1] == 1 and sum(padded["attention_mask"]) < 7
    pair = tokenizer("하나", "둘")
    assert pair["token_type_ids"][-1] == 1 and pair["input_ids"].count(3) == 2


def test_fast_tokenizers_take_the_same_shortcut(sample_sentences):
    mini = load_tokenizer(MINI)
    sentences = [*sample_sentences, *ODD]
    for max_len in (8, 50):
        tokens = tokenize(sentences, mini, max_len)
        expected = mini(sentences, truncation=True, max_length=max_len)["input_ids"]
        assert [row.tolist() for row in np.split(tokens.ids, tokens.offsets[1:-1])] == expected
    assert len(mini(" ".join(sample_sentences))["input_ids"]) > 1000  # the shortcut's limit does not stay


def test_decode_round_trip(tokenizer, sample_sentences):
    for sentence in sample_sentences[:50]:
        assert tokenizer.decode(tokenizer(sentence)["input_ids"], skip_special_tokens=True) == sentence


def test_save_and_load(tokenizer, tmp_path, sample_sentences):
    tokenizer.save_pretrained(tmp_path)
    for again in (KoBERTTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)):
        assert isinstance(again, KoBERTTokenizer)
        assert packed(again, sample_sentences, 50) == packed(tokenizer, sample_sentences, 50)


def test_kobert_beside_a_vocab_txt(vocabulary_files, sample_sentences, tmp_path):
    expected = KoBERTTokenizer.from_pretrained(vocabulary_files[0])
    shutil.copy(vocabulary_files[0], tmp_path / "tokenizer_78b3253a26.model")
    (tmp_path / "vocab.txt").write_text("".join(f"{piece}\n" for piece in expected.pieces), encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    found = load_tokenizer(tmp_path)
    assert packed(found, sample_sentences, 50) == packed(expected, sample_sentences, 50)


def test_only_the_hubs_layout_is_saved_under_the_hubs_name(vocabulary_files, tmp_path):
    for file, name in zip(vocabulary_files, ("tokenizer_78b3253a26.model", "spiece.model")):
        KoBERTTokenizer.from_pretrained(file).save_pretrained(tmp_path / name)
        assert (tmp_path / name / name).read_bytes() == file.read_bytes()


def test_fast_path_knows_added_tokens(tokenizer):
    before = cached_tokens(["새말 하나"], tokenizer, 50).ids.tolist()
    tokenizer.add_tokens(["새말"])
    ids = tokenizer("새말 하나")["input_ids"]
    assert len(tokenizer) - 1 in ids
    assert packed(tokenizer, ["새말 하나"], 50) == [ids]
    assert cached_tokens(["새말 하나"], tokenizer, 50).ids.tolist() == ids != before


def test_decomposed_text_gives_the_same_ids(tokenizer, sample_sentences):
    decomposed = [unicodedata.normalize("NFD", sentence) for sentence in sample_sentences]
    assert decomposed != sample_sentences
    assert packed(tokenizer, decomposed, 50) == packed(tokenizer, sample_sentences, 50)
    assert tokenizer(decomposed[0])["input_ids"] == tokenizer(sample_sentences[0])["input_ids"]
    mini = load_tokenizer(MINI)
    assert (tokenize(decomposed, mini, 50).ids == tokenize(sample_sentences, mini, 50).ids).all()


def test_special_tokens_mask(tokenizer):
    ids = tokenizer("하나", "둘")["input_ids"]
    mask = tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)
    assert [i for i, special in zip(ids, mask) if special] == [2, 3, 3]


def test_foreign_files_are_refused(tmp_path):
    (tmp_path / "spiece.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        KoBERTTokenizer.from_pretrained(tmp_path / "spiece.model")
    with pytest.raises(UserError, match="no such file"):
        KoBERTTokenizer.from_pretrained(tmp_path / "missing.model")
    (tmp_path / "spiece.model").unlink()
    with pytest.raises(UserError, match="holds no SentencePiece file"):
        KoBERTTokenizer.from_pretrained(tmp_path)


def test_mini_vocabulary():
    tokenizer = load_tokenizer(MINI)
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3, 4]) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert len(tokenizer) == 12_000
    ids = tokenizer("아침에 비가 왔다.")["input_ids"]
    assert ids[0] == 2 and ids[-1] == 3 and 1 not in ids
    assert (MINI / "tokenizer.json").stat().st_size < 500_000


@pytest.mark.parametrize("kind", ["kobert", "fast"])
def test_cache_returns_what_tokenize_does_and_is_read_again(kind, vocabulary_files, sample_sentences, monkeypatch):
    tokenizer = load_tokenizer(vocabulary_files[0] if kind == "kobert" else MINI)
    expected = tokenize(sample_sentences, tokenizer, 20)
    first = cached_tokens(sample_sentences, tokenizer, 20)
    monkeypatch.setattr("data.tokenize.tokenize", lambda *args, **kwargs: pytest.fail("tokenised twice"))
    again = cached_tokens(sample_sentences, tokenizer, 20)
    for tokens in (first, again):
        assert (tokens.ids == expected.ids).all() and (tokens.offsets == expected.offsets).all()
    monkeypatch.undo()


def test_cache_key_covers_content_tokenizer_and_length(vocabulary_files, sample_sentences):
    original = load_tokenizer(vocabulary_files[0])
    cached_tokens(sample_sentences, original, 20)
    assert cached_tokens(sample_sentences, original, 10).lengths.max() == 10
    assert len(cached_tokens(sample_sentences[1:], original, 20).lengths) == len(sample_sentences) - 1
    mini = load_tokenizer(MINI)
    cut_right = cached_tokens(sample_sentences, mini, 20).ids
    assert (cut_right == tokenize(sample_sentences, mini, 20).ids).all()
    mini.truncation_side = "left"
    assert (cached_tokens(sample_sentences, mini, 20).ids != cut_right).any()


@pytest.mark.parametrize("file", ["ids.npy", "offsets.npy"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "missing"])
def test_damaged_cache_is_made_again(file, damage, tmp_path, vocabulary_files, sample_sentences):
    tokenizer = load_tokenizer(vocabulary_files[0])
    expected = tokenize(sample_sentences, tokenizer, 20)
    cached_tokens(sample_sentences, tokenizer, 20)
    (path,) = (tmp_path / "cache").rglob(file)
    content = path.read_bytes()
    path.write_bytes(content[: {"truncated": len(content) // 2, "empty": 0, "missing": 0}[damage]])
    if damage == "missing":
        path.unlink()
    for _ in range(2):
        tokens = cached_tokens(sample_sentences, tokenizer, 20)
        assert (tokens.ids == expected.ids).all() and (tokens.offsets == expected.offsets).all()
    assert path.read_bytes() == content
    assert [folder.name for folder in path.parent.parent.iterdir()] == [path.parent.name]


def test_unwritable_cache_stops_nobody(vocabulary_files, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("KOSIMCSE_CACHE", str(tmp_path / "file"))
    assert len(cached_tokens(["하나", "둘"], load_tokenizer(vocabulary_files[0]), 20).lengths) == 2
    assert "not written" in capsys.readouterr().err


def test_a_user_without_a_home_has_no_cache(vocabulary_files, monkeypatch):
    monkeypatch.delenv("KOSIMCSE_CACHE")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user id that nobody has
    assert len(cached_tokens(["하나", "둘"], load_tokenizer(vocabulary_files[0]), 20).lengths) == 2


def in_child(work):
    """Run work() in a forked process; return its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return pid


def test_processes_that_build_the_same_cache_at_once(vocabulary_files, sample_sentences, tmp_path, monkeypatch):
    """All begin to write at the same moment; all get the tokens, one folder is left, and nothing half in it."""
    tokenizer = load_tokenizer(vocabulary_files[0])
    expected = tokenize(sample_sentences, tokenizer, 20)
    everybody = multiprocessing.get_context("fork").Barrier(6, timeout=600)

    def together(folder, tokens, write=tokenize_module._write_cache):
        everybody.wait()
        write(folder, tokens)

    monkeypatch.setattr(tokenize_module, "_write_cache", together)

    def work():
        for _ in range(2):
            tokens = cached_tokens(sample_sentences, tokenizer, 20)
            assert (tokens.ids == expected.ids).all() and (tokens.offsets == expected.offsets).all()

    children = [in_child(work) for _ in range(6)]
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 6
    (folder,) = (tmp_path / "cache" / "tokens").iterdir()
    assert {file.name for file in folder.iterdir()} == {"ids.npy", "offsets.npy"}


def test_a_killed_build_does_no_harm_and_is_cleared_later(vocabulary_files, sample_sentences, tmp_path, monkeypatch):
    tokenizer = load_tokenizer(vocabulary_files[0])
    expected = tokenize(sample_sentences, tokenizer, 20)
    folder = tmp_path / "cache" / "tokens"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: signal.pause())  # the child hangs with the first file half safe
        pid = in_child(lambda: cached_tokens(sample_sentences, tokenizer, 20))
        while not list(folder.glob("*/.ids.npy.*.partial")):
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    (leftover,) = folder.glob("*/.*")
    tokens = cached_tokens(sample_sentences, tokenizer, 20)
    assert (tokens.ids == expected.ids).all() and leftover.exists()  # it could be another process's, at work
    os.utime(leftover, (0, 0))
    cached_tokens(sample_sentences, tokenizer, 10)
    assert not leftover.exists() and len(list(folder.iterdir())) == 2
