"""The training step and loop: equal to the padded, plain one; deterministic; what a run leaves behind."""

import csv
import functools
import gc
import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter
from transformers import BertConfig, BertModel

import train
from data.errors import RunError
from data.nli import read_triplets
from data.tokenize import Tokens, load_tokenizer, tokenize
from model.attention import Group
from model.checkpoint import load_encoder
from model.encoder import SentenceEncoder
from model.losses import contrastive_loss
from model.metrics import CORRELATIONS
from model.microbatch import Encode, cut_by_length
from model.objectives import SimCSE, make_objective
from model.packed import lay_in_rows
from model.pooling import POOLINGS, states_to_pool
from model.progress import LOG_COLUMNS
from model.states import States
from model.trainer import Task, parameter_groups
from model.trainer import train as run_training
from model.utils import resolve_precision
from tests.conftest import ROOT, SAMPLE


@pytest.fixture(scope="module")
def batch(tiny_bert):
    """An encoder, packed sentences and a batch of 16 triplets."""
    sentences, examples = read_triplets([SAMPLE / "train_nli.tsv"])
    sentences, examples = sentences[:48], examples[:16]  # every sentence is a new one there
    encoder = load_encoder(tiny_bert, dropout=0.0, training=True)
    return encoder, sentences, tokenize(sentences, encoder.tokenizer, 50), examples


simcse = SimCSE(dims=[32], temperature=0.05)


def gradients(encoder, loss):
    encoder.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def reference_step(tiny_bert, batch):
    """pooling -> (loss, gradients) of the reference procedure: three passes over the columns, padded to 50."""
    encoder, sentences, _, examples = batch

    @functools.cache
    def step(pooling):
        bert = BertModel.from_pretrained(tiny_bert, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)

        def padded(column):
            texts = [sentences[i] for i in examples[:, column]]
            inputs = encoder.tokenizer(texts, padding="max_length", truncation=True, max_length=50, return_tensors="pt")
            outputs = bert(**inputs, output_hidden_states=True)
            states = states_to_pool(outputs, pooling)
            if pooling == "pooler":
                return outputs.pooler_output
            if pooling == "cls":
                return states[:, 0]
            mask = inputs["attention_mask"][..., None]
            return (states * mask).sum(1) / mask.sum(1)

        loss = contrastive_loss(padded(0), padded(1), [padded(2)], 0.05)
        return loss.item(), gradients(bert, loss)

    return step


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(
    "max_tokens, layout",
    [(1, "row"), (400, "row"), (100_000, "row"), (60, "padded"), (100_000, "padded"), (400, "rows"), (100_000, "rows")],
)
@pytest.mark.parametrize("dropout", [0.0, 1e-9])  # the second goes dropout's way, but nothing ever falls
def test_a_step_in_micro_batches_equals_the_padded_step(
    tiny_bert, batch, reference_step, monkeypatch, max_tokens, layout, pooling, dropout
):
    _, _, tokens, examples = batch
    encoder = load_encoder(tiny_bert, pooling, dropout=dropout, training=True).train()
    encoder._packable = layout != "padded"
    monkeypatch.setattr(SentenceEncoder, "packs_in_rows", layout == "rows")
    encode = Encode(encoder, tokens, max_tokens)
    loss = simcse(encode, examples)
    ours = gradients(encoder, loss)
    expected_loss, expected = reference_step(pooling)
    assert loss.item() == pytest.approx(expected_loss, rel=1e-5)
    assert set(ours) == {f"bert.{name}" for name in expected}
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[f"bert.{name}"], gradient, atol=1e-5, rtol=1e-3)


def test_rows_hold_whole_sentences_and_little_padding(batch):
    generator = np.random.default_rng(0)
    for lengths in ([1], [64], [65, 2], [50] * 9 + [14] * 8, generator.integers(2, 130, 50), batch[2].lengths):
        lengths = np.sort(lengths)[::-1]
        starts, slots, rows, width = lay_in_rows(lengths)
        assert width % 64 == 0 and lengths[0] <= width < lengths[0] + 64
        used = np.zeros(rows * width, dtype=int)
        for start, length in zip(starts, lengths):
            assert start // width == (start + length - 1) // width
            used[start : start + length] += 1
        assert used.max() == 1
        by_row = [slots[starts // width == row][np.argsort(starts[starts // width == row])] for row in range(rows)]
        assert all(found.tolist() == list(range(len(found))) for found in by_row)
    lengths = np.sort(np.clip(generator.gamma(4, 5, 768).astype(int), 3, 50))[::-1]  # about KorNLI's
    *_, rows, width = lay_in_rows(lengths)
    assert rows * width < 1.04 * lengths.sum()


def test_the_last_layer_computes_first_tokens_alone(tiny_bert, batch):
    """What [CLS] pooling does not look at is not computed; it would be, were nothing skipped."""
    _, _, tokens, examples = batch
    seen = {}
    for pooling in ("cls", "mean"):
        encoder = load_encoder(tiny_bert, pooling, training=True)
        layer = encoder.bert.encoder.layer[-1]
        for module in (layer.attention.self.query, layer.intermediate):
            module.register_forward_hook(
                lambda module, inputs, output: seen.setdefault(pooling, []).append(output.shape[:-1].numel())  # noqa: B023
            )
        for mode in (True, False):
            Encode(encoder.train(mode), tokens, 10_000)(examples[:, 0])
    # with mean pooling and dropout all queries come of one product with keys and values: `query` itself is not called
    whole = tokens.lengths[examples[:, 0]].sum()
    assert seen == {"cls": [16] * 4, "mean": [whole] * 3}


@pytest.mark.parametrize("layout", ["row", "rows", "padded"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cached_gradients_equal_the_plain_ones_with_dropout(tiny_bert, batch, monkeypatch, layout, precision):
    _, _, tokens, examples = batch
    encoder = load_encoder(tiny_bert, dropout=0.3, training=True).train()
    encoder._packable = layout != "padded"
    monkeypatch.setattr(SentenceEncoder, "packs_in_rows", layout == "rows")
    found = []
    for cache_gradients in (False, True):
        torch.manual_seed(3)
        encode = Encode(encoder, tokens, 100, cache_gradients, precision)
        found.append(gradients(encoder, simcse(encode, examples)))
        after = torch.get_rng_state()
        found.append({"the next random numbers": after})
    for plain, cached in zip(found[:2], found[2:]):
        assert all(torch.equal(plain[name], cached[name]) for name in plain)
    torch.manual_seed(4)
    encode = Encode(encoder, tokens, 100)
    other = gradients(encoder, simcse(encode, examples))
    assert not all(torch.equal(found[0][name], other[name]) for name in other)  # dropout was on


@pytest.mark.parametrize("name", ["simcse-unsup", "mlm"])
def test_cached_gradients_of_other_objectives(tiny_bert, batch, name):
    _, sentences, tokens, _ = batch
    encoder = load_encoder(tiny_bert, "mean", dropout=0.3, training=True).train()
    objective = make_objective(name, encoder, tokens, [32], 0.05, 1.0, mask_duplicates=False)
    plain, cached = {}, {}
    for cache_gradients, found in ((False, plain), (True, cached)):
        torch.manual_seed(1)
        encode = Encode(encoder, tokens, 100, cache_gradients)
        found.update(gradients(encoder, objective(encode, np.arange(len(sentences))[:, None])))
    for name, gradient in plain.items():
        torch.testing.assert_close(cached[name], gradient, atol=1e-7, rtol=1e-5)


def test_cached_gradients_hold_nothing_of_attention(tiny_bert, batch):
    _, _, tokens, examples = batch
    encoder = load_encoder(tiny_bert, dropout=0.3, training=True).train()
    for cache_gradients in (False, True):
        embeddings = Encode(encoder, tokens, 100, cache_gradients)(examples[:, 0])
        gc.collect()
        assert not any(isinstance(held, Group) for held in gc.get_objects())
    embeddings.sum().backward()


@pytest.mark.parametrize(
    "name, pooling, dropout",
    # 1e-9 goes dropout's way, where packed tokens are filled up, but nothing ever falls
    [("simcse", "mean", 0.0), ("simcse", "mean_top2", 1e-9), ("simcse", "cls", 1e-9), ("mlm", "mean", 1e-9)],
)
def test_bf16_is_near_fp32_and_keeps_weights_and_loss(batch, monkeypatch, name, pooling, dropout):
    _, sentences, _, examples = batch
    # of random weights nearly all sentences are alike
    encoder = load_encoder("mini", pooling, dropout=dropout, training=True).train()
    tokens = tokenize(sentences, encoder.tokenizer, 50)
    objective = make_objective(name, encoder, tokens, [encoder.dim], 0.05, 1.0, mask_duplicates=False)
    rows = examples if name == "simcse" else np.arange(len(sentences))[:, None]
    filled = []
    monkeypatch.setattr("model.encoder.filling", lambda n: filled.append(-n % 32) or filled[-1])

    def step(precision):
        torch.manual_seed(0)  # the same hidden tokens
        encode = Encode(encoder, tokens, 10_000 if name == "mlm" else 400, precision=precision)
        assert encode(examples[:, 0]).dtype == torch.float32
        torch.manual_seed(0)
        loss = objective(encode, rows)
        return loss, torch.cat([g.flatten() for g in gradients(encoder, loss).values()])

    (loss, gradient), (loss16, gradient16) = step("fp32"), step("bf16")
    assert any(filled) == (dropout > 0)
    assert loss16.dtype == gradient16.dtype == torch.float32 and not torch.equal(gradient16, gradient)
    assert loss16.item() == pytest.approx(loss.item(), rel=0.01)
    assert (gradient16 - gradient).norm() < 0.02 * gradient.norm()
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}


def test_precision(monkeypatch):
    cpu = torch.device("cpu")
    for capabilities, expected in (({"avx512_bf16": True}, "bf16"), ({"avx2": True}, "fp32"), ({}, "fp32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found, raising=False)
        assert resolve_precision("auto", cpu) == expected
    assert resolve_precision("bf16", cpu) == "bf16" and resolve_precision("auto", torch.device("mps")) == "fp32"


def test_compile(tiny_bert, batch, tmp_path):
    """One compilation serves sentences of every length, dropout included; the step is the eager one's."""
    _, _, tokens, examples = batch
    torch.manual_seed(0)
    BertModel(BertConfig.from_pretrained(tiny_bert, num_hidden_layers=1)).save_pretrained(tmp_path)  # half the time
    load_tokenizer(tiny_bert).save_pretrained(tmp_path)
    counter = CompileCounter()
    encoder = load_encoder(tmp_path, dropout=0.0, training=True).train()
    encode = Encode(encoder, tokens, 200)
    expected = gradients(encoder, simcse(encode, examples))
    encoder.compile(dynamic=True, backend=counter)
    assert not encoder.packs
    found = gradients(encoder, simcse(encode, examples))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-3)
    compilations = counter.frame_count
    for start in range(0, 12, 3):  # other numbers of sentences, other lengths
        simcse(encode, examples[start : start + 4])
    assert counter.frame_count <= compilations + 1 and compilations > 0
    torch.compiler.reset()
    counter = CompileCounter()
    encoder = load_encoder(tmp_path, dropout=0.3, training=True).train()
    encoder.compile(dynamic=True, backend=counter, fullgraph=True)
    first, second = (Encode(encoder, tokens, 200)(examples[:4, 0]) for _ in range(2))
    assert counter.frame_count > 0 and not torch.equal(first, second)


def test_cut_by_length():
    lengths = np.array([40, 10, 10, 8, 7, 6, 5, 5, 1])
    assert [lengths[cut].tolist() for cut in cut_by_length(lengths, 20)] == [
        [40],
        [10, 10],
        [8, 7, 6][:2],
        [6, 5, 5],
        [1],
    ]
    assert [lengths[cut].tolist() for cut in cut_by_length(lengths, 1000)] == [[40], [10, 10, 8], [7, 6], [5, 5], [1]]
    packed = cut_by_length(lengths, 20, padded=False)
    assert [lengths[cut].tolist() for cut in packed] == [[40], [10, 10], [8, 7], [6, 5, 5, 1]]


def test_micro_batches_for_rows_hold_sentences_of_every_length(batch, monkeypatch):
    lengths = np.random.default_rng(0).integers(3, 51, 4000)
    tokens = Tokens(np.zeros(lengths.sum(), dtype=np.int64), np.concatenate([[0], np.cumsum(lengths)]))
    encode = Encode(batch[0], tokens, 8192)
    monkeypatch.setattr(SentenceEncoder, "packs_in_rows", True)
    order = np.argsort(-lengths)
    cuts = encode._cut(order)
    assert np.array_equal(np.sort(np.concatenate(cuts)), np.arange(4000))
    for cut in cuts:
        mine = lengths[order[cut]]
        _, _, rows, width = lay_in_rows(mine)
        assert mine.sum() <= 8192 + 64 and rows * width < 1.05 * mine.sum()
    encode.max_tokens = 1  # no more of them than sentences
    assert all(len(cut) == 1 for cut in encode._cut(order))


def test_weight_decay_spares_biases_and_layer_norms(batch):
    encoder = batch[0]
    decayed, spared = parameter_groups(encoder, 0.1)
    assert decayed["weight_decay"] == 0.1 and spared["weight_decay"] == 0
    names = {id(p): name for name, p in encoder.named_parameters()}
    spared_names = {names[id(p)] for p in spared["params"]}
    assert spared_names == {n for n in names.values() if n.endswith("bias") or "LayerNorm" in n}
    assert len(decayed["params"]) + len(spared_names) == len(names)


class Recorder:
    """A run folder that only remembers."""

    state, states = None, States(Path("nowhere"))

    def __init__(self):
        self.rows, self.saved, self.state_steps = [], [], []

    def log(self, **row):
        self.rows.append(row)

    def save_best(self, encoder, metrics):
        self.saved.append(metrics)
        self.best = {name: value.clone() for name, value in encoder.state_dict().items()}

    def save_state(self, step, state):
        self.state_steps.append(step)

    def restore_best(self, encoder):
        encoder.load_state_dict(self.best)


SETTINGS = {
    **{"mix": "sum", "max_steps": None, "max_grad_norm": None, "patience": None},
    "lr": 1e-3,
    "warmup_ratio": 0.25,
    "weight_decay": 0.01,
    "eval_steps": 3,
    "save_steps": 2,
    "select_by": "cosine_spearman",
    "seed": 1,
}


def fit(encoder, tokens, examples, objective, evaluate, run, epochs):
    task = Task(objective, examples, None, batch_size=5)
    settings = SimpleNamespace(**SETTINGS, epochs=epochs)
    return run_training(Encode(encoder, tokens, 200), [task], evaluate, run, settings)


def metrics_of(score):
    return {"avg": 0.0, **dict.fromkeys(CORRELATIONS, 0.0), "cosine_spearman": score}


def test_the_loop_equals_a_textbook_loop(tiny_bert, batch):
    """The same steps, written out: padded batches, AdamW, the learning rate by hand."""
    _, sentences, tokens, examples = batch
    ours, slow = (load_encoder(tiny_bert, dropout=0.0, training=True) for _ in range(2))
    scores = itertools.count()  # better every time, so that the last weights are the best
    evaluate = lambda e: metrics_of(next(scores))  # noqa: E731
    fit(ours, tokens, examples, simcse, evaluate, Recorder(), epochs=2)

    slow.train()
    optimizer = torch.optim.AdamW(parameter_groups(slow, 0.01), lr=0.0)
    total, warmup, step = 8, 2, 0
    for epoch in (1, 2):
        order = np.random.default_rng([1, epoch]).permutation(16)
        for start in range(0, 16, 5):
            rate = 1e-3 * (step / warmup if step < warmup else (total - step) / (total - warmup))
            for group in optimizer.param_groups:
                group["lr"] = rate
            rows = examples[order[start : start + 5]]
            embeddings = [slow(**slow.tokenize([sentences[i] for i in column])) for column in rows.T]
            optimizer.zero_grad()
            contrastive_loss(*embeddings[:2], embeddings[2:], 0.05).backward()
            optimizer.step()
            step += 1
    assert step == total
    # AdamW turns rounding noise of gradients that are nearly zero into whole steps, so single weights may differ;
    # a wrong rate, order or decay moves the weights by more than a hundredth of the way they went.
    flat = [torch.cat([p.detach().flatten() for p in e.parameters()]) for e in (load_encoder(tiny_bert), ours, slow)]
    assert (flat[1] - flat[2]).norm() < 0.01 * (flat[2] - flat[0]).norm()


def test_evaluations_and_the_best(tiny_bert, batch):
    _, _, tokens, examples = batch
    encoder = load_encoder(tiny_bert, training=True)
    scores = iter([10.0, 30.0, math.nan, 30.0])
    run = Recorder()
    evaluate = lambda encoder: metrics_of(next(scores))  # noqa: E731
    best, progress = fit(encoder, tokens, examples, simcse, evaluate, run, epochs=2)
    assert [row["step"] for row in run.rows if "avg" in row] == [0, 3, 6, 8]
    assert [metrics["step"] for metrics in run.saved] == [0, 3]
    assert (best["step"], best["cosine_spearman"]) == (3, 30.0)
    assert run.state_steps == [2, 4, 6, 8] and progress.examples == 32
    kept = encoder.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in run.best.items())


def test_a_loss_that_is_not_a_number_stops(tiny_bert, batch):
    _, _, tokens, examples = batch
    encoder = load_encoder(tiny_bert, training=True)

    class NotANumber(SimCSE):
        def loss(self, columns, rows, labels):
            return columns[0].sum() * math.nan

    objective = NotANumber([32], 0.05)
    with pytest.raises(RunError, match="the loss is nan at step 1; .* no state had been saved"):
        fit(encoder, tokens, examples, objective, lambda e: metrics_of(1.0), Recorder(), epochs=1)


@pytest.fixture
def train_flags(tiny_bert, few_triplets, few_pairs, tmp_path):
    return [
        *("--model", str(tiny_bert), "--train_data", str(few_triplets), "--batch_size", "12"),
        *("--valid_data", str(few_pairs), "--epochs", "2", "--eval_steps", "8", "--lr", "1e-3"),
        *("--pooling", "mean", "--output_dir", str(tmp_path / "run")),
    ]


def test_a_run_leaves_everything(train_flags, tmp_path, capsys):
    train.main(train_flags)
    run = tmp_path / "run"
    assert {file.name for file in run.iterdir()} == {
        *("model", "state", "nli_checkpoint.pt", "train_config.json", "dev_metrics.json", "log.csv")
    }
    with (run / "log.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == LOG_COLUMNS
    assert [int(row["step"]) for row in rows] == [0, 8, 10, 16]
    assert float(rows[-1]["loss"]) < float(rows[2]["loss"])
    best = json.loads((run / "dev_metrics.json").read_text())
    assert best["cosine_spearman"] == max(float(row["cosine_spearman"]) for row in rows if row["cosine_spearman"])
    config = json.loads((run / "train_config.json").read_text())
    assert (
        config["flags"]["lr"] == 1e-3
        and config["flags"]["temperature"] == 0.05
        and config["tasks"][0]["examples"] == 96
    )
    assert "best: step" in capsys.readouterr().err


def test_same_seed_same_weights(train_flags, tmp_path):
    def weights(folder, seed):
        flags = ["--output_dir", str(tmp_path / folder), "--seed", seed, "--max_steps", "2", "--select_by", "last"]
        train.main([*train_flags, *flags])
        return load_encoder(tmp_path / folder).state_dict()

    first, second, other = weights("a", "1"), weights("b", "1"), weights("c", "2")
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_nothing_in_the_way_is_overwritten(train_flags, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    torch.save({"model": {}}, run / "nli_checkpoint.pt")  # where the README says the published one goes
    (run / "log.csv").write_text("mine")
    (run / "notes.txt").write_text("mine")
    (run / ".building-x").mkdir()  # left by a run that was killed while it saved
    (run / ".nli_checkpoint.pt.123.partial").write_text("half")
    (run / ".log.csv.swp").write_text("an editor's")
    train.main([*train_flags, "--max_steps", "2"])
    assert [file.name for file in run.glob(".*")] == [".log.csv.swp"]
    assert f"what was there is kept in {run / 'previous-1'}" in capsys.readouterr().err
    assert torch.load(run / "previous-1" / "nli_checkpoint.pt") == {"model": {}}
    assert (run / "previous-1" / "log.csv").read_text() == (run / "notes.txt").read_text() == "mine"

    first = load_encoder(run).state_dict()
    train.main([*train_flags, "--model", str(run), "--max_steps", "1"])  # the run before is a run folder of its own
    kept = load_encoder(run / "previous-2").state_dict()
    assert all(torch.equal(first[key], kept[key]) for key in first)


def test_the_repository_is_no_run_folder(train_flags, fails):
    for folder in (ROOT, ROOT / "model", ROOT / "data"):
        assert "holds Python code" in fails(train.main, [*train_flags, "--output_dir", folder])
    assert "the encoder that the" in fails(train.main, [*train_flags, "--output_dir", ROOT / "model" / "mini"])
    assert (ROOT / "model" / "encoder.py").is_file()


def test_training_goes_on_from_a_run_folder(train_flags, tmp_path, capsys):
    train_flags += ["--max_steps", "2"]
    train.main(train_flags)
    capsys.readouterr()
    unsaid = [flag for flag in train_flags if flag not in ("--pooling", "mean")]  # then as the run's, which is saved
    train.main([*unsaid, "--model", str(tmp_path / "run"), "--output_dir", str(tmp_path / "next"), "--lr", "1e-9"])
    assert "was trained with" not in capsys.readouterr().err
    assert json.loads((tmp_path / "next" / "train_config.json").read_text())["flags"]["pooling"] == "mean"
    scores = [json.loads((tmp_path / name / "dev_metrics.json").read_text())["avg"] for name in ("run", "next")]
    assert scores[1] == pytest.approx(scores[0], abs=0.1)
    train.main(
        [*train_flags, "--model", str(tmp_path / "run"), "--pooling", "cls", "--output_dir", str(tmp_path / "cls")]
    )
    assert (
        "was trained with --pooling mean --max_len 50; this training goes on with --pooling cls"
        in capsys.readouterr().err
    )
