"""On a GPU: a step is what it is on a CPU, nothing waits for the GPU within it, and its memory can run out.

KOSIMCSE_GPU=1 python -m pytest tests/test_gpu.py      # without the variable tests do not see GPUs, see conftest.py
"""

import gc

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import evaluate
import train
from data.nli import read_triplets
from data.tokenize import Tokens, tokenize
from model.checkpoint import load_encoder
from model.encoder import SentenceEncoder
from model.microbatch import Encode
from model.objectives import OBJECTIVES, make_objective
from model.trainer import parameter_groups
from tests.conftest import SAMPLE

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and KOSIMCSE_GPU=1 to see it")
GPU = torch.device("cuda")


@pytest.fixture(scope="module")
def triplets():
    sentences, examples = read_triplets([SAMPLE / "train_nli.tsv"])
    return sentences[:120], examples[:40]


def make_encode(folder, sentences, pooling="pooler", dropout=0.0, device=GPU, max_len=50, **how):
    torch.manual_seed(0)  # mini has no pooler
    encoder = load_encoder(folder, pooling, dropout=dropout, training=True).to(device).train()
    return Encode(encoder, tokenize(sentences, encoder.tokenizer, max_len), 400, **how)


def step(encode, examples, objective="simcse"):
    """(loss, all gradients as one vector, on the CPU) of a step; the same masks fall at every call."""
    torch.manual_seed(0)
    encoder = encode.encoder
    encoder.zero_grad()
    loss = make_objective(objective, encoder, encode.tokens, [encoder.dim], 0.05, 1.0, False)(encode, examples)
    loss.backward()
    found = [p.grad.flatten().cpu() for p in encoder.parameters() if p.grad is not None]
    return loss.item(), torch.cat(found)


@pytest.mark.parametrize("pooling", ["pooler", "mean", "mean_first_last"])
@pytest.mark.parametrize(
    "precision, packed, tolerance",
    [("fp32", False, 1e-3), ("fp32", True, 1e-3), ("bf16", False, 0.03), ("bf16", True, 0.03)],
)
def test_a_step_equals_the_cpus(triplets, monkeypatch, pooling, precision, packed, tolerance):
    sentences, examples = triplets
    expected_loss, expected = step(make_encode("mini", sentences, pooling, device=torch.device("cpu")), examples)
    encode = make_encode("mini", sentences, pooling, precision=precision)
    if not packed:
        monkeypatch.setattr(SentenceEncoder, "packs", False)
    assert encode.encoder.packs == packed
    for _ in range(3):  # packed: as it is, recorded, replayed
        loss, gradient = step(encode, examples)
    assert bool(encode.encoder.graphs._graphs) == packed
    assert loss == pytest.approx(expected_loss, rel=tolerance)
    assert (gradient - expected).norm() < tolerance * expected.norm()


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-3), ("bf16", 0.03)])
def test_a_long_sentence_among_short_ones(triplets, precision, tolerance, pooling):
    sentences, examples = triplets
    sentences = [" ".join(sentences[:20]), *sentences[1:]]  # of rows of two times 64
    expected_loss, expected = step(
        make_encode("mini", sentences, pooling, device=torch.device("cpu"), max_len=128), examples
    )
    encode = make_encode("mini", sentences, pooling, max_len=128, precision=precision)
    assert encode.tokens.lengths.max() == 128
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):  # an error where PyTorch would take its plain one
        loss, gradient = step(encode, examples)
    assert loss == pytest.approx(expected_loss, rel=tolerance)
    assert (gradient - expected).norm() < tolerance * expected.norm()


@pytest.mark.parametrize("objective, pooling", [("simcse", "pooler"), ("simcse", "mean"), ("mlm", "mean")])
def test_graphs_replay_what_would_run_without_them(triplets, objective, pooling):
    """Other sentences in batches of the same shape, dropout's masks and all, and two backward passes into one step."""
    sentences, examples = triplets
    batches = [examples, examples + len(sentences), examples[::-1], examples]
    batches = [batch[:, :1] for batch in batches] if objective == "mlm" else batches
    found = []
    for with_graphs in (True, False):
        encode = make_encode("mini", sentences, pooling, 0.1, precision="bf16")
        encode.max_tokens = 65_536  # all in one
        ids, offsets = encode.tokens.ids.astype(int), encode.tokens.offsets
        others = np.where(ids > 4, 5 + (ids - 5) * 7 % 11_995, ids)  # special tokens stay
        encode.tokens = Tokens(np.append(ids, others), np.append(offsets, offsets[1:] + offsets[-1]))
        encoder = encode.encoder
        if not with_graphs:
            encoder.graphs = None
        module = make_objective(objective, encoder, encode.tokens, [encoder.dim], 0.05, 1.0, False)
        optimizer = torch.optim.SGD(encoder.parameters(), lr=1e-3)
        torch.manual_seed(0)
        for batch in batches:
            losses = []
            for rows in (batch, batch[::-1].copy()):
                losses.append(module(encode, rows))
                losses[-1].backward()
            gradient = torch.cat([p.grad.flatten().clone() for p in encoder.parameters() if p.grad is not None])
            optimizer.step()
            optimizer.zero_grad()
            found.append((torch.stack(losses).detach(), gradient))
        assert not with_graphs or len(encoder.graphs._graphs) == 1
    for (losses, gradient), (expected_losses, expected) in zip(found[:4], found[4:]):
        torch.testing.assert_close(losses, expected_losses, rtol=1e-3, atol=1e-3)
        assert (gradient - expected).norm() < 0.01 * expected.norm()


def test_graphs_outlive_those_of_another_encoder(triplets):
    """cuBLAS's workspaces of a stream go with any graph that was recorded on it."""
    other, encode = (make_encode("mini", triplets[0], precision="bf16") for _ in range(2))
    for _ in range(2):
        step(other, triplets[1])
        expected, _ = step(encode, triplets[1])
    assert other.encoder.graphs._graphs and encode.encoder.graphs._graphs
    del other
    gc.collect()
    torch.cuda.empty_cache()
    for _ in range(3):
        assert step(encode, triplets[1])[0] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("width", [64, 128])
def test_attention_drops_the_same_in_both_passes(width, dtype, tolerance):
    """It is linear in the values: what comes out, times a gradient, is the values times theirs, whatever is dropped."""
    make_encode("mini", ["문장"])  # sets what attention may be
    attention = load_encoder("mini").bert.encoder.layer[0].attention
    torch.manual_seed(0)
    query, key, value, gradient = torch.randn(4, 5, width, 256, device=GPU, dtype=dtype)
    value.requires_grad_()
    owners = torch.arange(width, device=GPU).expand(5, -1) // 20
    mask = owners[:, None, :, None] == owners[:, None, None, :]
    out = attention._attend(query, key, value, mask, 0.3)
    out.backward(gradient)
    ours, theirs = (out.double() * gradient.double()).detach(), value.grad.double() * value.detach().double()
    assert abs(ours.sum() - theirs.sum()) < tolerance * ours.norm()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("objective", ["simcse", "mlm"])
def test_cached_gradients_equal_the_plain_ones_with_dropout(tiny_bert, triplets, precision, objective):
    sentences, examples = triplets
    examples = examples if objective == "simcse" else np.arange(len(sentences))[:, None]
    (_, plain), (_, cached), (_, without) = (
        step(make_encode(tiny_bert, sentences, "mean", p, precision=precision, cache_gradients=c), examples, objective)
        for p, c in ((0.1, False), (0.1, True), (0.0, False))
    )
    assert (cached - plain).norm() < 0.01 * plain.norm() < 0.1 * (without - plain).norm()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_no_step_waits_for_the_gpu(tiny_bert, triplets, precision, objective, pooling):
    sentences, examples = triplets
    encode = make_encode(tiny_bert, sentences, pooling, 0.1, precision=precision)
    encoder = encode.encoder
    columns = {"simcse": 3, "simcse-unsup": 1, "mlm": 1}.get(objective, 2)
    labels = np.arange(len(examples)) % 3 if columns == 2 and objective != "pairs" else None
    module = make_objective(objective, encoder, encode.tokens, [32, 16], 0.05, 2.0, True)
    groups = parameter_groups(torch.nn.ModuleList([encoder, module]), 0.0)
    optimizer = torch.optim.AdamW(groups, fused=True)

    def whole_step():
        module(encode, examples[:, :columns], labels).backward()
        torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
        optimizer.step()
        optimizer.zero_grad()

    whole_step()
    whole_step()  # a recording, which may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        whole_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_encode_equals_the_cpus(triplets):
    encoder = load_encoder("mini")
    expected = encoder.encode(triplets[0])
    found = encoder.encode(triplets[0], device="cuda")
    assert found.device.type == "cpu"
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


@pytest.fixture
def flags(few_triplets, few_pairs, tmp_path):
    flags = ["--model", "mini", "--train_data", few_triplets, "--valid_data", few_pairs]
    return [str(flag) for flag in (*flags, "--output_dir", tmp_path / "run", "--batch_size", 48, "--eval_steps", 2)]


def test_train_resume_evaluate(flags, few_pairs, tmp_path, capsys):
    flags += ["--max_steps", "4", "--save_steps", "2"]
    train.main(flags)
    assert "cuda in bf16" in capsys.readouterr().err
    expected = (tmp_path / "run" / "log.csv").read_text().splitlines()
    for file in (tmp_path / "run" / "state").glob("step-00000004*"):
        file.unlink()
    train.main([*flags, "--resume"])
    assert "going on after step 2" in capsys.readouterr().err
    found = (tmp_path / "run" / "log.csv").read_text().splitlines()
    assert len(found) == len(expected)
    for column in ("loss", "cosine_spearman"):
        one, other = (float(log[-1].split(",")[log[0].split(",").index(column)]) for log in (found, expected))
        assert one == pytest.approx(other, rel=0.01)
    evaluate.main(["--model", str(tmp_path / "run"), "--test_data", str(few_pairs)])
    assert "| AVG |" in capsys.readouterr().out


def test_out_of_memory_is_a_sentence(flags, fails):
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(GPU).total_memory
    allowed = torch.cuda.memory_reserved() + 250 * 2**20  # beside what other tests left
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    try:
        message = fails(train.main, [*flags, "--batch_size", 96], code=1)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory" in message and "--cache_gradients" in message and "--micro_batch_tokens" in message
