"""Losses and objectives against slow, obvious versions and sentence-transformers; tasks, mixes, backbones."""

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from sentence_transformers.sentence_transformer import losses as theirs

import evaluate
import SemanticSearch
import train
from data.dropped import Dropped
from data.nli import read_triplets
from data.tasks import read_examples
from data.tokenize import Tokens, load_tokenizer, tokenize
from model.checkpoint import MINI, load_encoder, save_encoder
from model.encoder import SentenceEncoder
from model.losses import contrastive_loss, cosent_loss, cosine_regression_loss, symmetric_contrastive_loss
from model.microbatch import Encode
from model.objectives import (
    MASKED_SHARE,
    OBJECTIVES,
    SBERTNLI,
    STS,
    CoSENT,
    MaskedLM,
    Pairs,
    SimCSE,
    UnsupervisedSimCSE,
    same_tokens,
)
from model.states import States
from model.trainer import Task
from tests.conftest import SAMPLE


def cosine(a, b):
    return (a @ b / (a.norm() * b.norm())).item()


def embeddings_of(*shape):
    torch.manual_seed(0)
    return torch.randn(*shape) * 3


@pytest.mark.parametrize("alpha", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("rows", [1024, 3])  # in memory at a time
def test_contrastive_loss_with_weights_several_negatives_and_candidates_left_out(alpha, k, rows, monkeypatch):
    monkeypatch.setattr("model.losses.ROWS", rows)
    a, p, *negatives = embeddings_of(2 + k, 4, 5)
    left_out = torch.zeros(4, 4 * (1 + k), dtype=torch.bool)
    left_out[0, 2] = left_out[3, 4] = left_out[1, -1] = True
    total = 0.0
    for i in range(4):
        denominator = 0.0
        for j, candidate in enumerate([*p, *(row for column in negatives for row in column)]):
            own_negative = j >= 4 and j % 4 == i
            weight = 0 if left_out[i, j] else alpha if own_negative else 1
            denominator += weight * math.exp(cosine(a[i], candidate) / 0.3)
        total -= math.log(math.exp(cosine(a[i], p[i]) / 0.3) / denominator) / 4
    assert contrastive_loss(a, p, negatives, 0.3, alpha, left_out).item() == pytest.approx(total, rel=1e-5)


def test_symmetric_contrastive_loss():
    a, b = embeddings_of(2, 6, 5)
    both = (contrastive_loss(a, b, [], 0.05) + contrastive_loss(b, a, [], 0.05)) / 2
    assert symmetric_contrastive_loss(a, b, 0.05).item() == pytest.approx(both.item(), rel=1e-6)
    expected = theirs.MultipleNegativesSymmetricRankingLoss(model=None, scale=20.0)
    expected = expected.compute_loss_from_embeddings([a, b], None)
    assert symmetric_contrastive_loss(a, b, 0.05).item() == pytest.approx(expected.item(), rel=1e-6)


def test_graded_losses():
    a, b = embeddings_of(2, 6, 5)
    scores = torch.tensor([0.0, 5.0, 2.5, 2.5, 1.0, 4.0])
    cosines = [cosine(x, y) for x, y in zip(a, b)]
    total = 1.0
    for i in range(6):
        for j in range(6):
            if scores[i] > scores[j]:
                total += math.exp(20 * (cosines[j] - cosines[i]))
    assert cosent_loss(a, b, scores).item() == pytest.approx(math.log(total), rel=1e-5)
    expected = theirs.CoSENTLoss(model=None).compute_loss_from_embeddings([a, b], scores)
    assert cosent_loss(a, b, scores).item() == pytest.approx(expected.item(), rel=1e-5)
    assert cosent_loss(a, b, torch.ones(6)).item() == 0  # nothing is in the wrong order

    squares = [(c - s.item() / 5) ** 2 for c, s in zip(cosines, scores)]
    assert cosine_regression_loss(a, b, scores / 5).item() == pytest.approx(sum(squares) / 6, rel=1e-5)
    expected = theirs.CosineSimilarityLoss(model=None).compute_loss_from_embeddings([a, b], scores / 5)
    assert cosine_regression_loss(a, b, scores / 5).item() == pytest.approx(expected.item(), rel=1e-6)


class Given:
    """An `encode` whose embeddings are given."""

    def __init__(self, table):
        self.table = table

    def __call__(self, rows):
        return self.table[torch.from_numpy(rows)]


def test_sbert_nli_equals_sentence_transformers():
    u, v = embeddings_of(2, 6, 5)
    objective = SBERTNLI([5])
    labels = np.array([0, 1, 2, 2, 0, 1])
    model = torch.nn.Module()
    model.device, model.forward = torch.device("cpu"), lambda features: {"sentence_embedding": features}
    reference = theirs.SoftmaxLoss(model, 5, num_labels=3)
    reference.classifier = objective.classifiers["5"]
    expected = reference([u, v], torch.from_numpy(labels))
    loss = objective(Given(torch.cat([u, v])), np.arange(12).reshape(2, 6).T, labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_objectives_at_several_sizes_are_sums():
    table = embeddings_of(12, 8)
    rows, scores = np.arange(12).reshape(6, 2), np.array([0, 5, 2.5, 2.5, 1, 4], dtype=np.float32)
    for make in (lambda dims: Pairs(dims, 0.05), STS, CoSENT):
        expected = sum(make([d])(Given(table), rows, scores).item() for d in (2, 8))
        assert make([8, 2])(Given(table), rows, scores).item() == pytest.approx(expected, rel=1e-6)
    nli, labels = SBERTNLI([8, 2]), np.array([0, 1, 2, 2, 0, 1])
    expected = 0.0
    for d, classifier in nli.classifiers.items():
        u, v = table[0::2, : int(d)], table[1::2, : int(d)]
        logits = classifier(torch.cat([u, v, (u - v).abs()], dim=1))
        expected += torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).item()
    assert nli(Given(table), rows, labels).item() == pytest.approx(expected, rel=1e-6)
    matryoshka = sum(
        theirs.CoSENTLoss(None).compute_loss_from_embeddings(
            [table[0::2, :d], table[1::2, :d]], torch.from_numpy(scores)
        )
        for d in (2, 8)
    )
    assert CoSENT([8, 2])(Given(table), rows, scores).item() == pytest.approx(matryoshka.item(), rel=1e-5)


def test_duplicates_are_no_negatives():
    """Rows 0 and 2 share a premise, rows 1 and 3 a hypothesis; sentence 9 has the tokens of sentence 3."""
    tokens = Tokens(np.array([*range(9), 3], dtype=np.uint16), np.arange(11))
    same = same_tokens(tokens)
    assert same[9] == same[3] and len(set(same)) == 9
    rows = np.array([[0, 1, 2], [3, 4, 5], [0, 6, 7], [8, 4, 9]])
    left_out = SimCSE([4], 0.05, same=same)._left_out(rows)
    for i, (anchor, positive, _) in enumerate(rows):
        for j, candidate in enumerate([*rows[:, 1], *rows[:, 2]]):
            expected = j != i and same[candidate] in (same[anchor], same[positive])
            assert left_out[i, j] == expected
    assert left_out.sum() == 3  # 4 for row 1 and row 3; sentence 9 for row 1
    assert SimCSE([4], 0.05)._left_out(rows) is None


def test_repeated_negatives_count_once(tmp_path):
    """--negatives 3 of a premise with two contradictions is the loss of those two."""
    table = embeddings_of(7, 4)
    rows = np.array([[0, 1, 2, 3, 2], [4, 5, 6, 3, 2]])
    a, p, n1, n2, n3 = (table[torch.from_numpy(column)] for column in rows.T)
    left_out = torch.zeros(2, 8, dtype=torch.bool)
    left_out[:, 6] = True  # the first example's third negative is its first
    expected = contrastive_loss(a, p, [n1, n2, n3], 0.05, 2.0, left_out)
    assert SimCSE([4], 0.05, 2.0)(Given(table), rows).item() == pytest.approx(expected.item(), rel=1e-6)

    nli = tmp_path / "nli.tsv"
    nli.write_text(
        "premise\thypothesis\tlabel\n"
        + "".join(
            f"가\t{h}\t{label}\n"
            for h, label in zip("나다라마", ["entailment", "contradiction", "contradiction", "contradiction"])
        ),
        encoding="utf-8",
    )
    sentences, examples = read_triplets([nli], negatives=5)
    assert sorted(sentences[i] for i in examples[0, 2:5]) == ["다", "라", "마"]
    assert examples[0, 2:4].tolist() == examples[0, 5:7].tolist()


@pytest.fixture(scope="module")
def small(tiny_bert):
    sentences, _ = read_triplets([SAMPLE / "train_nli.tsv"])
    encoder = load_encoder(tiny_bert, "cls", dropout=0.1, training=True)
    return encoder, tokenize(sentences[:60], encoder.tokenizer, 50)


def test_unsupervised_simcse_sees_two_dropout_masks(small):
    encoder, tokens = small
    objective = UnsupervisedSimCSE([encoder.dim], 0.05)
    rows = np.arange(20)[:, None]
    torch.manual_seed(0)
    encoder.train()
    loss = objective(Encode(encoder, tokens, 1000), rows)
    torch.manual_seed(0)
    both = Encode(encoder, tokens, 1000)(np.concatenate([rows[:, 0], rows[:, 0]]))
    first, second = objective.head(both).chunk(2)
    assert not torch.equal(first, second)
    assert loss.item() == pytest.approx(contrastive_loss(first, second, [], 0.05).item(), rel=1e-5)
    encoder.eval()  # the same vectors twice: the loss is that of rows and themselves
    vectors = objective.head(encoder.encode(Tokens(tokens.ids[: tokens.offsets[20]], tokens.offsets[:21])))
    expected = contrastive_loss(vectors, vectors, [], 0.05)
    assert objective(Encode(encoder, tokens, 1000), rows).item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("family, layout", [("bert", "row"), ("bert", "rows"), ("bert", "padded"), ("electra", "row")])
def test_masked_language_modelling_against_a_loop(small, monkeypatch, family, layout):
    """One sentence at a time through the plain backbone, the same tokens hidden."""
    encoder, tokens = small
    if family == "electra":  # its word embeddings are narrower than its states
        narrow = {"embedding_size": 16, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = transformers.ElectraConfig(vocab_size=len(encoder.tokenizer), **narrow, intermediate_size=64)
        encoder = SentenceEncoder(transformers.ElectraModel(config), encoder.tokenizer, "cls")
    encoder.eval()
    encoder._packable = layout != "padded"
    monkeypatch.setattr(SentenceEncoder, "packs_in_rows", layout == "rows")
    objective = MaskedLM(encoder)
    seen = []

    def hide(ids):
        hidden, guessed = MaskedLM.hide(objective, ids)
        seen.append((ids, hidden, guessed))
        return hidden, guessed

    objective.hide = hide
    torch.manual_seed(0)
    loss = objective(Encode(encoder, tokens, 150), np.arange(30)[:, None])
    assert len(seen) > 1
    encoder._packable = True
    originals = {tuple(tokens.ids[a:b].tolist()) for a, b in zip(tokens.offsets[:30], tokens.offsets[1:31])}
    total, guesses = 0.0, 0
    for ids, hidden, guessed in seen:
        ids, hidden, guessed = ids.flatten(), hidden.flatten(), guessed.flatten()
        start = 0
        while start < len(ids):
            end = start + ids[start:].tolist().index(encoder.tokenizer.sep_token_id) + 1
            assert tuple(ids[start:end].tolist()) in originals
            with torch.no_grad():
                states = encoder.bert(hidden[None, start:end]).last_hidden_state[0]
                logits = objective.transform(states) @ encoder.bert.get_input_embeddings().weight.T + objective.bias
            for position in torch.nonzero(guessed[start:end]).flatten().tolist():
                total -= logits[position].log_softmax(0)[ids[start + position]].item()
                guesses += 1
            start = end
            while start < len(ids) and ids[start] == encoder.tokenizer.pad_token_id:
                assert not guessed[start]
                start += 1
    assert loss.item() == pytest.approx(total / guesses, rel=1e-4)


def test_what_masked_language_modelling_hides(small):
    encoder, _ = small
    objective = MaskedLM(encoder)
    torch.manual_seed(0)
    ids = torch.randint(5, 1500, (100_000,))
    ids[::10] = encoder.tokenizer.cls_token_id
    hidden, guessed = objective.hide(ids)
    assert not guessed[::10].any() and torch.equal(hidden[~guessed], ids[~guessed])
    share = guessed.sum().item() / 90_000
    assert share == pytest.approx(MASKED_SHARE, abs=0.005)
    masked = (hidden[guessed] == encoder.tokenizer.mask_token_id).float().mean().item()
    left = (hidden[guessed] == ids[guessed]).float().mean().item()
    assert masked == pytest.approx(0.8, abs=0.02) and left == pytest.approx(0.1, abs=0.02)


def test_batches_go_through_all_examples_in_random_order():
    task = Task(None, np.arange(10)[:, None], None, batch_size=4)
    epochs = [np.concatenate([task.batch(3 * e + i, (7,)) for i in range(3)]) for e in range(2)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs) and (epochs[0] != epochs[1]).any()


KOREAN = {
    "triplets": "한 남자가 먹는다.\t남자가 식사한다.\t아무도 없다.\n",
    "labelled pairs": "premise\thypothesis\tlabel\n비가 온다.\t날씨가 궂다.\tentailment\n",
    "scored pairs": "비가 온다.\t눈이 온다.\t2.5\n",
    "pairs": "환불하고 싶어요\t돈을 돌려받고 싶어요\n",
    "sentences": "비가 온다.\n",
}


@pytest.fixture
def files(tmp_path):
    """Data of every kind, made from the sample."""
    triplets = [line.split("\t") for line in (SAMPLE / "train_nli.tsv").read_text(encoding="utf-8").splitlines()][:40]
    found = {kind: tmp_path / f"{kind.replace(' ', '_')}.tsv" for kind in KOREAN}
    found["sentences"] = tmp_path / "sentences.txt"
    text = {
        "triplets": "".join("\t".join(row) + "\n" for row in triplets),
        "labelled pairs": "premise\thypothesis\tlabel\n"
        + "".join(f"{a}\t{p}\tentailment\n{a}\t{n}\tcontradiction\n" for a, p, n in triplets),
        "scored pairs": "".join(f"{a}\t{b}\t{i % 6}\n" for i, (a, b, _) in enumerate(triplets)),
        "pairs": "".join(f"{a}\t{b}\n" for a, b, _ in triplets),
        "sentences": "".join(f"{sentence}\n" for row in triplets for sentence in row),
    }
    for kind, path in found.items():
        path.write_text(text[kind], encoding="utf-8")
    return found


@pytest.fixture
def fit(tiny_bert, few_pairs, tmp_path):
    """Train a little, by the script; the run folder."""

    def run(*more, name="run"):
        train.main(
            [
                *("--model", str(tiny_bert), "--valid_data", str(few_pairs), "--pooling", "mean"),
                *("--max_steps", "4", "--lr", "1e-3", "--eval_steps", "2", "--output_dir", str(tmp_path / name)),
                *map(str, more),
            ]
        )
        return tmp_path / name

    return run


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains_and_resumes(name, fit, files, capsys):
    data = files[OBJECTIVES[name].reads]
    flags = ["--objective", name, "--train_data", data, "--batch_size", "16", "--save_steps", "1", "--keep_states", "4"]
    run = fit(*flags)
    final = States(run / "state").load(4)["model"]
    for file in (run / "state").glob("step-0000000[34].*"):
        file.unlink()
    fit(*flags, "--resume")
    assert "going on after step 2" in capsys.readouterr().err
    again = States(run / "state").load(4)["model"]
    assert all(torch.equal(final[key], again[key]) for key in final)
    start = load_encoder(json.loads((run / "train_config.json").read_text())["flags"]["model"], pooling="mean")
    key = "encoder.bert.encoder.layer.0.output.dense.weight"
    assert not torch.equal(final[key], start.state_dict()[key.removeprefix("encoder.")])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective_and_data_that_do_not_match_are_refused(name, files, fails, tiny_bert, tmp_path, monkeypatch):
    monkeypatch.setattr("train.load_encoder", lambda *args, **kwargs: pytest.fail("weights were loaded"))
    reads = OBJECTIVES[name].reads
    wrong = {"triplets": "scored pairs", "labelled pairs": "triplets", "scored pairs": "triplets", "pairs": "sentences"}
    argv = ["--model", tiny_bert, "--valid_data", SAMPLE / "valid_sts.tsv", "--output_dir", tmp_path / "run"]
    message = fails(train.main, [*argv, "--objective", name, "--train_data", files[wrong.get(reads, "pairs")]])
    assert f"the objective {name} reads" in message
    if name == "pairs":  # contradictions are no paraphrases
        klue = {"sentence1": "비가 온다.", "sentence2": "해가 난다.", "labels": {"real-label": 0.4}}
        for column, judged, text in [
            ("gold_label", "nli.tsv", "sentence1\tsentence2\tgold_label\n비가 온다.\t해가 난다.\tcontradiction\n"),
            ("labels.real-label", "klue.json", json.dumps([klue])),
        ]:
            (tmp_path / judged).write_text(text, encoding="utf-8")
            message = fails(train.main, [*argv, "--objective", name, "--train_data", tmp_path / judged])
            assert f"its column {column!r} says that not all pairs belong together" in message
    if name == "simcse":
        message = fails(train.main, [*argv, "--negatives", "2", "--train_data", files["triplets"]])
        assert "--negatives 2: triplet files have one a row" in message
    if reads == "triplets":
        message = fails(train.main, [*argv, "--train_data", files["sentences"]])
        assert "line 1: found 1 column" in message and "the objective simcse reads triplets" in message


def test_tasks_are_summed_or_alternate(fit, files):
    tasks = ["--task", f"simcse:1:8:{files['triplets']}", "--task", f"sts:0.5:4:{files['scored pairs']}"]
    run = fit(*tasks)
    config = json.loads((run / "train_config.json").read_text())
    assert [(task["objective"], task["weight"], task["examples"]) for task in config["tasks"]] == [
        ("simcse", 1.0, 40),
        ("sts", 0.5, 40),
    ]
    runs = run, fit(*tasks, "--mix", "alternate", name="alternate")
    summed, alternating = (States(found / "state").load(4) for found in runs)
    key = "encoder.bert.encoder.layer.0.output.dense.weight"
    assert not torch.equal(summed["model"][key], alternating["model"][key])
    # a task that weighs nothing changes nothing, when summed without dropout
    alone = fit(
        "--objective", "simcse", "--train_data", files["triplets"], "--batch_size", "8", "--dropout", "0", name="a"
    )
    nothing = ["--task", f"simcse:1:8:{files['triplets']}", "--task", f"sts:0:4:{files['scored pairs']}"]
    with_nothing = fit(*nothing, "--dropout", "0", name="b")
    a, b = (States(run / "state").load(4)["model"][key] for run in (alone, with_nothing))
    torch.testing.assert_close(a, b)


def test_mixes_step_by_step(tiny_bert, tmp_path):
    """Which batches meet which objective, and the weights of their losses."""
    from model.trainer import train as run_training
    from tests.test_training import SETTINGS, Recorder, metrics_of

    calls = []

    class Spy(torch.nn.Module):
        def __init__(self, name, parameter):
            super().__init__()
            self.name, self.parameter = name, parameter

        def forward(self, encode, rows, labels):
            calls.append((self.name, rows[:, 0].tolist(), labels.tolist()))
            return self.parameter.sum()

    for mix, expected in (("sum", ["a", "b", "a", "b", "a", "b"]), ("alternate", ["a", "b", "a", "b", "a", "b"])):
        calls.clear()
        encoder = load_encoder(tiny_bert)
        parameter = torch.nn.Parameter(torch.ones(1))
        rows = np.arange(6)[:, None]
        tasks = [
            Task(Spy("a", parameter), rows, np.arange(6) * 10, batch_size=2, weight=3.0),
            Task(Spy("b", parameter), rows, np.arange(6) * 100, batch_size=1, weight=0.5),
        ]
        run, evaluate = Recorder(), lambda e: metrics_of(0.0)
        steps = {"mix": mix, "epochs": 1, "lr": 1e-9, "warmup_ratio": 0.0, "eval_steps": 10, "save_steps": 10}
        settings = SimpleNamespace(**{**SETTINGS, **steps, "select_by": "last"})
        _, progress = run_training(SimpleNamespace(encoder=encoder), tasks, evaluate, run, settings)
        assert [name for name, _, _ in calls] == expected
        assert sorted(sum((batch for name, batch, _ in calls if name == "a"), [])) == list(range(6))
        for name, batch, labels in calls:
            assert labels == [(10 if name == "a" else 100) * i for i in batch]
        assert progress.examples == 9
        assert run.rows[-1]["step"] == (3 if mix == "sum" else 6)
        assert run.rows[-1]["loss"] == pytest.approx(3.5 if mix == "sum" else 1.75)  # the mean over the steps


def test_flags_reach_the_contrastive_loss(fit, tmp_path, monkeypatch):
    import model.objectives

    real, seen = model.objectives.contrastive_loss, []

    def spy(anchors, positives, negatives, *settings):
        seen.append((len(negatives), *settings))
        return real(anchors, positives, negatives, *settings)

    monkeypatch.setattr(model.objectives, "contrastive_loss", spy)
    data = tmp_path / "same_positives.tsv"
    data.write_text("".join(f"문장 {i}\t같은 말\t아니다 {i}\n" for i in range(8)), encoding="utf-8")
    flags = ["--train_data", data, "--batch_size", "8", "--max_steps", "1"]
    fit(*flags, "--temperature", "0.07", "--hard_negative_weight", "3", "--mask_duplicates")
    fit(*flags, "--negatives", "0", name="other")
    (*settings, left_out), (*others, nothing_left_out) = seen
    assert settings == [1, 0.07, 3] and left_out.sum() == 8 * 7
    assert others == [0, 0.05, 1] and nothing_left_out is None


@pytest.mark.parametrize(
    "more, message",
    [
        (["--task", "simcse:1:8"], "is not NAME:WEIGHT:BATCH:FILE[,FILE]"),
        (["--task", "simcse:x:8:f"], "'x' is not a number of at least 0"),
        (["--task", "simsce:1:8:f"], "--task simsce: choose one of simcse"),
        (["--task", "simcse:0:8:f", "--task", "sts:0:8:f"], "the weights sum to 0"),
        (["--task", "simcse:1:8:f", "--train_data", "f"], "name the data of every task inside --task"),
        (["--objective", "sts"], "--objective sts: name its data with --train_data"),
        (["--matryoshka", "16,x"], "'x' is not a whole number"),
    ],
)
def test_flags_that_cannot_be(more, message, fails, capsys):
    if "is not" in message:  # argparse's own way to refuse
        with pytest.raises(SystemExit) as exit_info:
            train.main(more)
        assert exit_info.value.code == 2 and message in capsys.readouterr().err
    else:
        assert message in fails(train.main, more)


def test_scores_of_another_range_are_noticed(fit, files, capsys):
    text = files["scored pairs"].read_text(encoding="utf-8")
    files["scored pairs"].write_text(re.sub(r"\d$", "0.5", text, flags=re.M), encoding="utf-8")
    fit("--objective", "sts", "--train_data", files["scored pairs"], "--batch_size", "8")
    assert "sts: no score is above 1, expected 0 to 5" in capsys.readouterr().err


def test_nothing_to_cut(files, few_pairs, fails, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini").mkdir()  # has nothing to do with the model of this name, which may be trained in it
    argv = ["--objective", "mlm", "--train_data", files["sentences"], "--valid_data", few_pairs, "--matryoshka", "8"]
    argv += ["--model", "mini", "--output_dir", "mini", "--resume"]
    assert "--matryoshka: mlm trains no embeddings" in fails(train.main, argv)


def test_matryoshka_trains_and_is_scored_cut(fit, files, fails, capsys, tmp_path, monkeypatch):
    run = fit("--matryoshka", "8,16", "--train_data", files["triplets"], "--batch_size", "16")
    scores = []
    for dim in ((), ("--dim", "8"), ("--dim", "32")):
        out = tmp_path / "scores.json"
        evaluate.main(["--model", str(run), "--test_data", str(SAMPLE / "test_sts.tsv"), "--json", str(out), *dim])
        scores.append(json.loads(out.read_text())[0]["cosine_spearman"])
    assert scores[0] == scores[2] != scores[1]
    monkeypatch.setattr("model.checkpoint._load_backbone", lambda *args: pytest.fail("weights were loaded"))
    test = ["--test_data", SAMPLE / "test_sts.tsv"]
    assert "cut at 64: this model's have 32" in fails(evaluate.main, ["--model", run, *test, "--dim", "64"])
    argv = ["--model", run, "--train_data", files["triplets"], "--valid_data", SAMPLE / "valid_sts.tsv"]
    argv += ["--output_dir", tmp_path / "no"]
    assert "cut at 33" in fails(train.main, [*argv, "--matryoshka", "33,8"])
    assert "has no pooler" in fails(
        train.main, [*argv, "--model", tiny_folder("electra", tmp_path), "--pooling", "pooler"]
    )


def test_read_examples_shares_sentences(files):
    index = {}
    triplets = read_examples("triplets", [files["triplets"]], index, Dropped())
    pairs = read_examples("pairs", [files["pairs"]], index, Dropped())
    scored = read_examples("scored pairs", [files["scored pairs"]], index, Dropped())
    labelled = read_examples("labelled pairs", [files["labelled pairs"]], index, Dropped())
    assert len(index) == 120 and np.array_equal(pairs.rows, triplets.rows[:, :2])
    assert scored.labels[:7].tolist() == [0, 1, 2, 3, 4, 5, 0] and np.array_equal(scored.rows, pairs.rows)
    assert labelled.labels.tolist() == [0, 2] * 40 and labelled.rows[1].tolist() == triplets.rows[0, [0, 2]].tolist()


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
BACKBONES = {
    "bert": ("Bert", SMALL, ["pooler"]),
    "roberta": ("Roberta", {**SMALL, "max_position_embeddings": 66}, ["pooler", "mean_first_last"]),
    "electra": ("Electra", {**SMALL, "embedding_size": 16}, ["cls", "mean"]),
    "deberta-v2": ("DebertaV2", {**SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, ["cls", "mean"]),
    "bart": (
        "Bart",
        {
            **{"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2},
            **{"decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64},
        },
        ["mean", "cls"],
    ),
    "t5": ("T5", {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}, ["mean", "mean_top2"]),
}


def tiny_folder(family, tmp_path):
    """A random model of a family in a Hugging Face folder, with mini's tokenizer."""
    folder = tmp_path / family
    if not folder.is_dir():
        name, sizes, _ = BACKBONES[family]
        torch.manual_seed(0)
        ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2}
        config = getattr(transformers, f"{name}Config")(vocab_size=12_000, **ids, **sizes)
        getattr(transformers, f"{name}Model")(config).save_pretrained(folder)
        load_tokenizer(MINI).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", BACKBONES)
def test_every_family_trains_is_scored_and_searches(family, few_pairs, tmp_path, capsys):
    """train -> evaluate -> search by the real scripts; saved in both forms, loaded from both."""
    folder, (*_, poolings) = tiny_folder(family, tmp_path), BACKBONES[family]
    for pooling in poolings:
        run = tmp_path / f"run-{pooling}"
        train.main(
            [
                *("--model", str(folder), "--pooling", pooling, "--train_data", str(SAMPLE / "train_nli.tsv")),
                *("--valid_data", str(few_pairs), "--batch_size", "32", "--max_steps", "2", "--select_by", "last"),
                *("--lr", "1e-3", "--eval_steps", "2", "--output_dir", str(run), "--precision", "fp32"),
            ]
        )
        losses = [line.split(",")[2] for line in (run / "log.csv").read_text().splitlines()[2:]]
        assert all(math.isfinite(float(loss)) for loss in losses)
        both = [load_encoder(path) for path in (run / "model", run / "nli_checkpoint.pt")]
        sentences = ["비가 온다.", "환불하고 싶어요"]
        assert torch.equal(both[0].encode(sentences), both[1].encode(sentences))
        for (name, weight), start in zip(both[0].named_parameters(), load_encoder(folder, pooling).parameters()):
            assert weight.ndim == 1 or not torch.equal(weight, start), name
        if pooling != poolings[0]:
            continue
        capsys.readouterr()
        evaluate.main(["--model", str(run), "--test_data", str(few_pairs)])
        assert f"| {run} |" in capsys.readouterr().out
        SemanticSearch.main(["--model", str(run)])
        assert capsys.readouterr().out.count("Score:") == 15


def test_albert_has_no_pooler_as_berts(tmp_path, few_pairs, fails, capsys):
    """Its pooler is a layer to which the model itself gives [CLS]."""
    config = transformers.AlbertConfig(vocab_size=12_000, embedding_size=16, pad_token_id=0, **SMALL)
    transformers.AlbertModel(config).save_pretrained(tmp_path / "albert")
    load_tokenizer(MINI).save_pretrained(tmp_path / "albert")
    argv = ["--model", str(tmp_path / "albert"), "--test_data", str(few_pairs)]
    assert "AlbertModel has no pooler as BERT's; choose one of cls, mean" in fails(evaluate.main, argv)
    evaluate.main([*argv, "--pooling", "mean"])
    assert "nan" not in capsys.readouterr().out


def test_t5_and_bart_are_their_encoders(tmp_path):
    """Our embeddings against transformers' own encoder classes, padded, pooled by hand."""
    sentences = ["비가 온다.", "환불하고 싶어요", "한 남자가 담으로 싸인 땅에서 백마를 타고 있다."]
    for family, make in (("t5", transformers.T5EncoderModel), ("bart", transformers.BartModel)):
        folder = tiny_folder(family, tmp_path)
        plain = make.from_pretrained(folder).eval()
        plain = plain.get_encoder() if family == "bart" else plain
        encoder = load_encoder(folder, pooling="mean")
        inputs = encoder.tokenize(sentences)
        with torch.no_grad():
            states = plain(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None]
        torch.testing.assert_close(
            encoder.encode(sentences), (states * mask).sum(1) / mask.sum(1), atol=1e-5, rtol=1e-4
        )


def test_t5_with_a_bare_sentencepiece_model(tmp_path, sample_sentences):
    """The form in which T5 is published: the library converts it, and its ids are sentencepiece's own."""
    folder = tiny_folder("t5", tmp_path)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sample_sentences), model_prefix=str(folder / "spiece"), vocab_size=1000, minloglevel=2,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False,
    )  # fmt: skip
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    encoder = load_encoder(folder, pooling="mean")
    for sentence in sample_sentences[:50]:
        assert encoder.tokenizer(sentence)["input_ids"] == [*pieces.encode(sentence), 1]
    save_encoder(encoder, tmp_path / "run")
    assert torch.equal(
        load_encoder(tmp_path / "run").encode(sample_sentences[:5]), encoder.encode(sample_sentences[:5])
    )
