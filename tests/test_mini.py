"""How mini was made: nothing that is measured is trained on, and every stage against a slow version."""

import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import average_precision_score
from transformers import AutoConfig, AutoModel

import train
from benchmarks import baselines
from data.sentences import read_pairs
from data.sts import read_sts
from data.tokenize import Tokens, load_tokenizer, tokenize
from model.checkpoint import MINI, load_encoder, save_encoder
from model.metrics import evaluate_sts
from model.states import States
from recipes.mini import average, distil, make_data, make_start, make_variants, make_vocabulary, static
from tests.conftest import ROOT, SAMPLE

KORSTS = "genre\tfilename\tyear\tid\tscore\tsentence1\tsentence2\n"


def korsts(rows):
    return KORSTS + "".join(f"g\tf\ty\t{i}\t{score}\t{a}\t{b}\n" for i, (a, b, score) in enumerate(rows))


@pytest.fixture
def korean(tmp_path):
    """A folder laid out as the open data, with a sentence of everything held out in every training file."""
    held_out = ["그룹 영의 문장.", "시험의 문장.", "클루의 첫 문장."]
    held_out += ["개발 하나."]
    leaks = [held_out[3] + "?", held_out[0].replace(" ", ""), held_out[1] + "!", held_out[2].replace(".", "")]
    groups = [(0, held_out[0]), (0, "영의 다른 문장."), (1, "일의 문장."), (1, "일의 다른 문장.")]
    files = {
        **{f"sentences/{name}.txt": "".join(f"{s}\n" for s in leaks) for name in make_data.KINDRED},
        "sentences/a.txt": "".join(f"{s}\n" for s in ["평범한 문장입니다.", *leaks]),
        "pairs/p.tsv": "".join(f"{s}\t짝 {i}\n" for i, s in enumerate(["평범한 짝입니다.", *leaks])),
        "triplets/t.tsv": "".join(f"{s}\t함의 {i}\t모순 {i}\n" for i, s in enumerate(["전제입니다.", *leaks])),
        "groups/paraKQC.tsv": "".join(f"{group}\t{s}\n" for group, s in groups),
        "groups/stylekqc.tsv": "11\t열하나의 문장.\n11\t열하나의 다른 문장.\n",
        "KorNLU/KorSTS/sts-train.tsv": korsts(
            [
                ("훈련 하나.", "훈련 둘.", 3.0),
                ("훈련 셋.", "훈련 넷.", 1.0),
                (held_out[1], "훈련 여섯.", 2.0),
                (held_out[0], "훈", 2.0),
            ]
        ),
        "KorNLU/KorSTS/sts-dev.tsv": korsts([("개발 하나.", "개발 둘.", 3.0), ("개발 셋.", "개발 넷.", 1.0)]),
        "KorNLU/KorSTS/sts-test.tsv": korsts([(held_out[1], "시험 둘.", 3.0), ("시험 셋.", "시험 넷.", 1.0)]),
        "KLUE/klue_sts_train.csv": "sentence1,sentence2,score\n"
        + "".join(f"{s},다른 문장 {i},{i}\n" for i, s in enumerate([held_out[2], "클루 문장.", *leaks[:3]])),
    }
    for name, text in files.items():
        (tmp_path / "korean" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "korean" / name).write_text(text, encoding="utf-8")
    return tmp_path / "korean", {make_data.key(sentence) for sentence in held_out}


def test_search_as_the_readme_shows_it():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)
    namespace = {}
    exec(blocks[0], namespace)
    printed = [float(score) for score in re.findall(r"\d\.\d{4}", blocks[0])]
    assert namespace["embeddings"].shape == (3, 256)
    assert len(printed) == 3 and namespace["scores"].tolist() == pytest.approx(printed, abs=2e-4)


def test_what_is_held_out_is_in_no_training_file(korean, tmp_path):
    folder, held_out = korean
    make_data.main([str(folder), "--output", str(tmp_path / "data")])
    files = {file.name: file.read_text(encoding="utf-8").splitlines() for file in (tmp_path / "data").iterdir()}
    assert {name: len(rows) for name, rows in files.items()} == {
        **{"retrieval.tsv": 2, "klue_sts_heldout.tsv": 1, "klue_sts_train.tsv": 1, "korsts_train.tsv": 3},
        **{"pairs.tsv": 1, "triplets.tsv": 1, "sentences.txt": 13, "kindred.txt": 10, "held_out.txt": 12},
    }
    assert held_out < set(files.pop("held_out.txt"))
    for name in set(files) - {"retrieval.tsv", "klue_sts_heldout.tsv", "korsts_train.tsv"}:
        assert not held_out & {make_data.key(field) for row in files[name] for field in row.split("\t")}


def test_cooccurrence_and_pmi_against_loops(monkeypatch):
    monkeypatch.setattr(make_start, "WINDOW", 2)
    tokens = tokenize(["나는 밥을 먹는다.", "너는 밥을 먹지 않는다.", "밥"], load_tokenizer(MINI), 16)
    found = np.unique([*range(5), *tokens.ids])  # as small a vocabulary as can be; special tokens keep their ids
    tokens, size = Tokens(np.searchsorted(found, tokens.ids).astype(np.uint16), tokens.offsets), len(found)
    expected = np.zeros((size, size))
    for start, end in zip(tokens.offsets[:-1], tokens.offsets[1:]):
        ids = tokens.ids[start:end]
        for i, a in enumerate(ids):
            for j, b in enumerate(ids):
                if i != j and a > 4 and b > 4 and abs(i - j) <= make_start.WINDOW:
                    expected[a, b] += abs(i - j) ** -0.5
    counts = make_start.cooccurrence(tokens, size)
    np.testing.assert_allclose(counts.toarray(), expected)
    total = expected.sum(1)
    context = total**0.75 / (total**0.75).sum()
    pmi = np.zeros_like(expected)
    for a, b in np.argwhere(expected):
        pmi[a, b] = max(0, np.log(expected[a, b] / (total[a] * context[b])))
    np.testing.assert_allclose(make_start.positive_pmi(counts).toarray(), pmi)


def test_static_vectors_keep_the_largest_singular_directions():
    random = np.random.default_rng(0)
    matrix = random.random((40, 6)) @ random.random((6, 40))
    vectors = make_start.static_vectors(scipy.sparse.csr_matrix(matrix), 6)
    u, s, _ = np.linalg.svd(matrix)
    np.testing.assert_allclose(np.abs(vectors), np.abs(u[:, :6] * s[:6] ** 0.5), atol=1e-6)


@pytest.fixture
def data(tmp_path, sample_sentences):
    """A folder as make_data writes it, from the sample."""
    (tmp_path / "sentences.txt").write_text("\n".join(sample_sentences[:300]) + "\n", encoding="utf-8")
    pairs = zip(sample_sentences[0::3], sample_sentences[1::3])
    (tmp_path / "pairs.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in pairs), encoding="utf-8")
    for name, step in (("korsts_train.tsv", 3), ("klue_sts_train.tsv", 6)):
        rows = zip(sample_sentences[0:90:step], sample_sentences[1:91:step])
        (tmp_path / name).write_text("".join(f"{a}\t{b}\t{i % 6}\n" for i, (a, b) in enumerate(rows)))
    return tmp_path


def test_word_vectors_are_saved_and_loaded(data, tmp_path, monkeypatch, sample_sentences):
    monkeypatch.setattr(static, "STEPS", 2)
    static.main([str(data), "--start", "mini", "--seed", "3", "--output", str(tmp_path / "words")])
    expected = static.StaticEncoder.untuned("mini", data).tune(data, 3)
    found = static.StaticEncoder.load(tmp_path / "words")
    assert torch.equal(found.vectors, expected.vectors.half().float())
    torch.testing.assert_close(found.encode(sample_sentences), expected.encode(sample_sentences), rtol=1e-2, atol=1e-2)


@pytest.fixture
def language_model(data, tiny_bert, sample_sentences, few_pairs):
    """A run of masked language modelling, and kindred.txt and held_out.txt in `data`."""
    (data / "kindred.txt").write_text("\n".join(sample_sentences[:40]) + "\n", encoding="utf-8")
    (data / "held_out.txt").write_text("nothing\n", encoding="utf-8")
    flags = ["--model", tiny_bert, "--pooling", "mean", "--objective", "mlm", "--train_data", data / "kindred.txt"]
    flags += ["--valid_data", few_pairs, "--max_steps", "1", "--output_dir", data / "mlm"]
    train.main([str(flag) for flag in flags])
    return data / "mlm"


def test_variants_differ_in_what_was_hidden(data, language_model):
    flags = [str(data), "--model", str(language_model), "--output", str(data / "variants.tsv"), "--variants", "3"]
    make_variants.main(flags)
    lines = (data / "variants.tsv").read_text(encoding="utf-8").splitlines()
    kindred = (data / "kindred.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) > 30
    for line in lines:
        sentence, *variants = line.split("\t")
        assert sentence in kindred and 1 <= len(variants) <= 3
        assert len({make_data.key(s) for s in (sentence, *variants)}) == 1 + len(variants)
        assert not any("[" in variant for variant in variants)
    banned = make_data.key(lines[0].split("\t")[1])
    (data / "held_out.txt").write_text(f"{banned}\n", encoding="utf-8")
    make_variants.main(flags)  # draws the same
    again = (data / "variants.tsv").read_text(encoding="utf-8")
    assert banned not in {make_data.key(s) for line in again.splitlines() for s in line.split("\t")[1:]}


def test_a_language_model_guesses_what_it_has_learnt(data, language_model, monkeypatch):
    """With one piece likelier than all others every hidden one becomes that piece, and no other changes."""
    encoder, head = make_variants.load_language_model(language_model)
    state = States(language_model / "state").load(1)["model"]
    for name, value in head.state_dict().items():
        assert torch.equal(value, state[f"objectives.0.{name}"])
    seen = []
    token_states = encoder.token_states
    encoder.token_states = lambda ids, mask: seen.append(ids) or token_states(ids, mask)
    favourite = encoder.tokenizer.convert_tokens_to_ids(encoder.tokenizer.tokenize("남자"))[-1]
    head.bias.data[favourite] = 1e4
    sentences = sorted((data / "kindred.txt").read_text(encoding="utf-8").splitlines(), key=len)
    decoded = []
    monkeypatch.setattr(
        type(encoder.tokenizer), "batch_decode", lambda self, ids, **_: decoded.extend(ids) or ["x"] * len(ids)
    )
    make_variants.vary(encoder, head, sentences, np.random.default_rng(0))
    tokens = tokenize(sentences, encoder.tokenizer, 64)
    shares = []
    for i, ids in enumerate(decoded):
        before = torch.from_numpy(tokens.ids[tokens.offsets[i] : tokens.offsets[i + 1]].astype(int))
        after = ids[: len(before)]
        hidden = seen[0][i][: len(before)] == encoder.tokenizer.mask_token_id
        assert torch.equal(after, torch.where(hidden, favourite, before))
        shares.append(hidden[1:-1].float().mean().item())
    assert 0.2 < np.mean(shares) < 0.4


def test_the_distillation_loss(sample_sentences):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(50, 8, generator=generator) for _ in range(2))
    teacher = F.normalize(teacher, dim=1)
    rows = np.arange(28).reshape(4, 7)
    loss = distil.Distillation(teacher.half())(lambda numbers: student[numbers], rows)
    alike, others = [], []
    for i, a in enumerate(rows.ravel()):
        for j, b in enumerate(rows.ravel()):
            error = (F.cosine_similarity(student[a], student[b], dim=0) - teacher[a] @ teacher[b]).item() ** 2
            if i != j:
                same = i // 7 == j // 7 and i % 7 < distil.GROUP and j % 7 < distil.GROUP
                (alike if same else others).append(error)
    assert loss.item() == pytest.approx(100 * (np.mean(alike) + np.mean(others)) / 2, rel=1e-3)


def test_examples_of_distillation():
    vectors = F.normalize(torch.randn(80, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    near = distil.neighbours(vectors, 60)
    expected = (vectors[:60] @ vectors.T - 3 * torch.eye(60, 80)).sort(1, descending=True).indices[:, : distil.NEAREST]
    np.testing.assert_array_equal(near, expected)
    variants = [[80 + 2 * i, 81 + 2 * i] if i % 2 else [80 + 2 * i] for i in range(60)]
    rows = distil.make_examples(variants, near, 80, 150, np.random.default_rng(0))
    assert rows.shape == (150, 7)
    assert sorted(rows[:60, 0]) == sorted(rows[60:120, 0]) == list(range(60))
    for anchor, *others in rows:
        assert {*others[:2]} <= {*variants[anchor]} and {*others[2:4]} <= {*near[anchor]}
    assert rows[:, 5:].max() < 80
    nearest = sum((rows[:, [3, 4]] == near[rows[:, 0], k][:, None]).sum() for k in range(5))
    assert 0.45 < nearest / 300 < 0.6  # log 6 / log 30 = 0.53: the nearer the likelier


def test_a_distilled_encoder(data, tiny_bert, language_model, monkeypatch, few_pairs, sample_sentences, fails, capsys):
    monkeypatch.setattr(static, "STEPS", 2)
    static.main([str(data), "--start", "mini", "--output", str(data / "words")])
    make_variants.main([str(data), "--model", str(language_model), "--output", str(data / "variants.tsv")])
    teachers = [("words", 0.5), ("mlm", 1.5)]
    loaded = [distil.load_teacher(data / name) for name, _ in teachers]
    first = [data, "--variants", data / "variants.tsv", "--model", tiny_bert, "--valid_data", few_pairs]
    first += ["--batch_size", 8, "--eval_steps", 2, "--output_dir", data / "run", "--lr", "1e-3", "--max_steps", 4]
    flags = [str(flag) for flag in (*first, "--teachers", *(f"{data / name}={weight}" for name, weight in teachers))]
    groups, original, tasks = distil.read_variants(data / "variants.tsv"), train.train, []
    monkeypatch.setattr(
        train, "train", lambda encode, found, **others: tasks.extend(found) or original(encode, found, **others)
    )
    distil.main(flags)
    log = (data / "run" / "log.csv").read_text().splitlines()
    assert len(log) >= 4 and "dev cosine_spearman" in capsys.readouterr().out
    distil.main([*flags, "--resume"])
    assert (data / "run" / "log.csv").read_text().splitlines() == log
    assert load_encoder(data / "run").encode(sample_sentences[:3]).shape == (3, 32)

    weighted = [(encoder, weight) for encoder, (_, weight) in zip(loaded, teachers)]
    vectors = distil.teach(weighted, sample_sentences, torch.device("cpu")).float()
    cosines = [F.normalize(encoder.encode(sample_sentences), dim=1) for encoder in loaded]
    expected = sum(weight / 2 * x @ x.T for x, (_, weight) in zip(cosines, teachers))
    torch.testing.assert_close(vectors @ vectors.T, expected, rtol=0, atol=2e-3)

    # each of an example's first sentences, an anchor and two of its variants, has its own vector
    others = [s for s in (data / "sentences.txt").read_text(encoding="utf-8").splitlines() if 8 <= len(s) <= 90]
    numbers = {sentence: i for i, sentence in enumerate(groups)}
    variants = [v for group in groups.values() for v in group]
    for variant in variants:
        if variant not in {*groups, *others}:
            numbers.setdefault(variant, len({*groups, *others}) + len(numbers) - len(groups))
    texts = {i: sentence for sentence, i in numbers.items()}
    known = [i for i in np.unique(tasks[0].rows[:, :3]) if i in texts]
    assert len(known) > len(groups) and all(v in texts.values() or v in others for v in variants)
    expected = distil.teach(weighted, [texts[i] for i in known], torch.device("cpu"))
    torch.testing.assert_close(tasks[0].objective.teachers[known].float(), expected.float(), rtol=0, atol=2e-3)
    for anchor, *pair in tasks[0].rows[:, :3]:
        assert all(texts.get(i) is None or texts[i] in groups[texts[anchor]] for i in pair)

    assert "'words' is not RUN=WEIGHT" in fails(distil.main, [*first, "--teachers", "words"])
    assert "'nan' is not" in fails(distil.main, [*first, "--teachers", "words=nan"])
    assert "--max_steps" in fails(distil.main, [*first[:-2], "--teachers", "words=1"])
    assert "holds Python code" in fails(distil.main, [*flags, "--output_dir", ROOT])
    (data / "variants.tsv").write_text("하나\t둘\n셋\n", encoding="utf-8")
    assert "variants.tsv, line 2: expected a sentence and variants" in fails(distil.main, flags)
    assert "objective mlm" in fails(make_variants.main, [data, "--model", data / "run", "--output", data / "v.tsv"])


def test_average_of_runs(tiny_bert, tmp_path, sample_sentences, fails):
    encoder = load_encoder(tiny_bert, "mean")
    encoder.bert.config.save_pretrained(tmp_path / "mini")
    encoder.tokenizer.save_pretrained(tmp_path / "mini")
    weights = [{name: value + shift for name, value in encoder.bert.state_dict().items()} for shift in (0, 0.5, 1)]
    for name, values in zip("abc", weights):
        encoder.bert.load_state_dict(values)
        save_encoder(encoder, tmp_path / name)
    average.main([*(str(tmp_path / name) for name in "abc"), "--output", str(tmp_path / "mini")])
    saved = load_file(tmp_path / "mini" / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float16}
    for name, value in weights[1].items():
        torch.testing.assert_close(saved[name].float(), value, atol=2e-3, rtol=1e-3)
    assert json.loads((tmp_path / "mini" / "sentence_encoder.json").read_text()) == {"pooling": "mean", "max_len": 50}
    assert load_encoder(tmp_path / "mini").encode(sample_sentences[0]).isfinite().all()
    save_encoder(load_encoder(tiny_bert, "cls"), tmp_path / "other")
    flags = [tmp_path / "a", tmp_path / "other", "--output", tmp_path / "mini"]
    assert "runs of different models or settings have no mean" in fails(average.main, flags)
    assert "no config.json there" in fails(average.main, [tmp_path / "a", "--output", tmp_path])


def test_retrieval_against_scikit_learn(tmp_path):
    random = np.random.default_rng(0)
    groups, vectors = np.repeat(range(6), 4), random.normal(size=(24, 3))
    (tmp_path / "groups.tsv").write_text("".join(f"{group}\t{i}\n" for i, group in enumerate(groups)))
    assert [sentence for _, sentence in read_pairs(tmp_path / "groups.tsv")] == list(map(str, range(24)))
    found = baselines.retrieval(lambda sentences: vectors[[int(s) for s in sentences]], tmp_path / "groups.tsv")
    cosines = (vectors @ vectors.T) / np.outer(*[np.linalg.norm(vectors, axis=1)] * 2)
    first, precisions = [], []
    for i in range(24):
        others = np.arange(24) != i
        first.append(groups[others][cosines[i, others].argmax()] == groups[i])
        precisions.append(average_precision_score(groups[others] == groups[i], cosines[i, others]))
    assert found == pytest.approx((100 * np.mean(first), 100 * np.mean(precisions)))


def test_start_has_static_vectors_for_frequent_pieces(tmp_path, sample_sentences):
    (tmp_path / "lines.txt").write_text("\n".join(sample_sentences) + "\n", encoding="utf-8")
    make_start.main([str(tmp_path / "lines.txt"), "--output", str(tmp_path / "start")])
    encoder = load_encoder(tmp_path / "start", "mean")
    found = encoder.bert.get_input_embeddings().weight.detach()
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(MINI)
    random = AutoModel.from_config(config, add_pooling_layer=False, dtype=torch.float32).get_input_embeddings().weight
    counts = np.bincount(tokenize(sample_sentences, encoder.tokenizer, 128).ids, minlength=len(found))
    frequent = torch.from_numpy(counts >= make_start.RARE) & (torch.arange(len(found)) >= make_start.FIRST)
    assert (found == random).all(1).equal(~frequent)
    assert found[frequent].norm(dim=1).mean().item() == pytest.approx(1, abs=1e-4)


def test_a_larger_start_on_pieces_within_morphemes(tmp_path, sample_sentences, monkeypatch, fails):
    class Kiwi:  # whose morphemes are a word's first letter and the rest
        def __init__(self, num_workers):
            pass

        def tokenize(self, lines):
            for line in lines:
                parts = []
                for word in re.finditer(r"\S+", line):
                    parts += [(word.start(), 1), (word.start() + 1, len(word[0]) - 1)]
                yield [SimpleNamespace(start=start, len=length) for start, length in parts if length]

    monkeypatch.setitem(sys.modules, "kiwipiepy", SimpleNamespace(Kiwi=Kiwi))
    assert list(make_vocabulary.mark_morphemes(["나는 밥을", "", "a"])) == ["나␟는 밥␟을", "a"]
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(sample_sentences) + "\n", encoding="utf-8")
    flags = [str(lines), "--morphemes", "--vocab_size", "1200", "--output", str(tmp_path / "morphemes")]
    make_vocabulary.main(flags)
    tokenizer = load_tokenizer(tmp_path / "morphemes")
    assert not any(len(piece) > 2 and piece.startswith("▁") for piece in tokenizer.get_vocab())
    flags = ["--tokenizer", str(tmp_path / "morphemes"), "--layers", "2", "--hidden", "128"]
    make_start.main([str(lines), "--output", str(tmp_path / "start"), *flags])
    config = load_encoder(tmp_path / "start", "mean").bert.config
    found = (config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.num_attention_heads)
    assert found == (2, 128, 512, 2) and config.vocab_size == len(tokenizer) == 1200
    assert "a multiple of 64" in fails(make_start.main, [lines, "--output", tmp_path / "x", "--hidden", "200"])
    monkeypatch.setitem(sys.modules, "kiwipiepy", None)
    words = [lines, "--morphemes", "--output", tmp_path / "x"]
    assert "pip install kiwipiepy" in fails(make_vocabulary.main, words, code=1)


def test_the_comparison_shows_what_evaluate_shows(tiny_bert, tmp_path, capsys):
    save_encoder(load_encoder(tiny_bert, "mean"), tmp_path)
    test = SAMPLE / "test_sts.tsv"
    flags = ["--idf_data", str(SAMPLE / "valid_sts.tsv"), "--test_data", str(test), "--model", str(tmp_path)]
    baselines.main(flags)
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    pairs = read_sts([test])
    scores = evaluate_sts(load_encoder(tmp_path).encode, [*pairs.sentences1, *pairs.sentences2], pairs.scores)
    assert rows[-1] == [str(tmp_path), f"{scores['cosine_spearman']:.2f}"]
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 3))
    valid = read_sts([SAMPLE / "valid_sts.tsv"])
    characters.fit([*valid.sentences1, *valid.sentences2])
    a, b = (characters.transform(sentences).toarray() for sentences in (pairs.sentences1, pairs.sentences2))
    assert float(rows[2][1]) == pytest.approx(100 * spearmanr((a * b).sum(1), pairs.scores).statistic, abs=0.005)
