"""Several processes: gloo on the CPU, forked from this one; and by the real torchrun."""

import gc
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback

import numpy as np
import pytest
import torch
from tqdm import tqdm

import train
from data.errors import RunError, UserError
from data.nli import read_triplets
from data.tokenize import tokenize
from model import distributed
from model.checkpoint import load_encoder
from model.microbatch import Encode
from model.objectives import SBERTNLI, SimCSE
from model.progress import Progress
from model.run_folder import only_writer
from model.states import States
from tests.conftest import ROOT, SAMPLE

# of each process its own, most likely, and below those that the system gives to others
PORTS = itertools.count(random.SystemRandom().randrange(15_000, 31_000))
HANGING = 600  # seconds: processes that wait for each other for ever are killed, those of a slow machine are not


def is_free(port):
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def on_processes(world, function):
    """Fork `world` processes, as torchrun would start them, that call function(rank); their exit codes.

    An exception is exit code 1 with its traceback on stderr; one that hangs is killed.
    """
    port = next(filter(is_free, PORTS))
    children = []
    gc.freeze()  # a collection in a child would copy every page of this process's objects
    for rank in range(world):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
                os.environ.update({name: str(value) for name, value in environment.items()})
                os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
                tqdm.set_lock(threading.RLock())  # its own could be held by a thread that is no more
                function(rank)
                code = 0
            except SystemExit as exit:
                code = exit.code
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    gc.unfreeze()
    codes, deadline = [None] * world, time.monotonic() + HANGING
    while None in codes and time.monotonic() < deadline:
        for i, child in enumerate(children):
            if codes[i] is None:
                ended, status = os.waitpid(child, os.WNOHANG)
                codes[i] = os.waitstatus_to_exitcode(status) if ended else None
        time.sleep(0.02)
    for i, child in enumerate(children):
        if codes[i] is None:
            os.kill(child, 9)
            os.waitpid(child, 0)
    return codes


@pytest.fixture(scope="module")
def step(tiny_bert):
    """A function (number of triplets, cache_gradients) -> loss and gradients of one step."""
    sentences, examples = read_triplets([SAMPLE / "train_nli.tsv"])
    encoder = load_encoder(tiny_bert, "cls", dropout=0.0, training=True).train()
    encoder.double()  # in float32 rounding alone can be 1e-6; with [CLS], because the pooler is float32's
    for p in encoder.parameters():
        if p.ndim == 2:
            p.data *= 10  # fresh weights make all embeddings alike, and their differences rounding noise
    tokens = tokenize(sentences, encoder.tokenizer, 50)
    simcse, nli = SimCSE([32], temperature=0.5), SBERTNLI([32]).double()

    def loss_and_gradients(n, cache_gradients=False, with_classifier=False):
        model = torch.nn.ModuleDict({"encoder": encoder, "objective": nli if with_classifier else simcse})
        model.zero_grad()
        encode = Encode(encoder, tokens, 200, cache_gradients)
        if with_classifier:
            loss = nli(lambda rows: encode(rows).double(), examples[:n, :2], np.arange(n) % 3)
        else:
            loss = simcse(encode, examples[:n])
        loss.backward()
        distributed.average_gradients(list(model.parameters()))
        return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}

    return loss_and_gradients


def difference(gradients, expected):
    """The norm of the difference of all gradients, relative to theirs."""
    flat, expected_flat = (torch.cat([g.flatten() for _, g in sorted(x.items())]) for x in (gradients, expected))
    return ((flat - expected_flat).norm() / expected_flat.norm()).item()


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("n", [32, 7, 1])
def test_the_step_equals_that_of_one_process(step, world, n):
    """32 triplets; 7, which is uneven; and one: with 3 sentences, of which each of 3 processes encodes one."""
    expected_loss, expected = step(n)

    def compare(rank):
        with distributed.processes(torch.device("cpu")):
            for cache_gradients in (False, True):
                loss, gradients = step(n, cache_gradients)
                assert loss == pytest.approx(expected_loss, rel=1e-6)
                assert difference(gradients, expected) < 1e-6

    assert on_processes(world, compare) == [0] * world


def test_a_classifier_learns_as_in_one_process(step):
    expected_loss, expected = step(7, with_classifier=True)

    def compare(rank):
        with distributed.processes(torch.device("cpu")):
            loss, gradients = step(7, with_classifier=True)
            assert loss == pytest.approx(expected_loss, rel=1e-6)
            assert difference(gradients, expected) < 1e-6

    assert on_processes(2, compare) == [0] * 2


def test_more_processes_than_sentences(step):
    expected_loss, expected = step(1)

    def compare(rank):
        with distributed.processes(torch.device("cpu")):
            loss, gradients = step(1)
            assert loss == pytest.approx(expected_loss, rel=1e-6)
            assert difference(gradients, expected) < 1e-6

    assert on_processes(5, compare) == [0] * 5


def test_encode_is_split_and_whole_again(tiny_bert, sample_sentences):
    encoder = load_encoder(tiny_bert)
    expected = encoder.encode(sample_sentences[:37])

    def compare(rank):
        encoded = []
        encoder.register_forward_hook(lambda module, inputs, output: encoded.append(len(output)))
        whole_pack = encoder.forward_packed
        encoder.forward_packed = lambda *inputs: encoded.append(sum(n for n, _ in inputs[1])) or whole_pack(*inputs)
        with distributed.processes(torch.device("cpu")):
            embeddings = encoder.encode(sample_sentences[:37], split=True)
        torch.testing.assert_close(embeddings, expected)
        assert sum(encoded) == (13 if rank == 0 else 12)

    assert on_processes(3, compare) == [0] * 3


@pytest.fixture
def train_flags(tiny_bert, few_triplets, few_pairs):
    """7 steps, the last of fewer triplets."""
    return [
        *("--model", str(tiny_bert), "--train_data", str(few_triplets), "--batch_size", "14"),
        *("--valid_data", str(few_pairs), "--epochs", "1", "--eval_steps", "3", "--lr", "1e-3"),
        *("--pooling", "mean", "--dropout", "0", "--precision", "fp32"),
    ]


def test_a_whole_training_by_torchrun(train_flags, tmp_path, capfd):
    """The README's command: the result of one process, one log, one line each; and it resumes."""
    train.main([*train_flags, "--output_dir", str(tmp_path / "one")])
    command = [*(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")]
    command += ["train.py", *train_flags, "--output_dir", str(tmp_path / "two")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANGING)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("best: step") == result.stderr.count("step 3: dev") == 1
    first, second = (load_encoder(tmp_path / name) for name in ("one", "two"))
    start = load_encoder(train_flags[1], pooling="mean")
    one, two, zero = (torch.cat([p.flatten() for p in encoder.parameters()]) for encoder in (first, second, start))
    assert (one - two).norm() < 0.01 * (one - zero).norm()  # AdamW makes whole steps of rounding noise
    assert len((tmp_path / "two" / "log.csv").read_text().splitlines()) == len(
        (tmp_path / "one" / "log.csv").read_text().splitlines()
    )
    resumed = [*train_flags, "--output_dir", str(tmp_path / "two"), "--resume"]
    assert on_processes(2, lambda rank: train.main(resumed)) == [0, 0]
    assert capfd.readouterr().err.count("going on after step 7") == 1


def test_sigterm_to_torchrun_saves_a_state_and_resumes(train_flags, tmp_path, capfd):
    """What Slurm sends: torchrun passes it on, and its own exit code is 1."""
    command = [*(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "train.py")]
    # more triplets and larger batches: the signal has to get there before the last step
    argv = [*train_flags, "--train_data", str(SAMPLE / "train_nli.tsv"), "--batch_size", "62", "--epochs", "7"]
    argv += ["--eval_steps", "100", "--output_dir", str(tmp_path), "--resume"]
    environment = {**os.environ, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(HANGING)}  # then it kills
    with subprocess.Popen([*command, *argv], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        before = []
        for line in process.stderr:
            before.append(line)
            if line.startswith("step 0: dev"):
                process.terminate()
                break
        after = process.stderr.read()
        code = process.wait(HANGING)
    assert code == 1, (before, after)
    assert after.count("SIGTERM: stopping after this step") == 2 and "its state saved in" in after
    newest = States(tmp_path / "state").newest()
    assert 1 <= newest < 56
    assert on_processes(2, lambda rank: train.main(argv)) == [0, 0]
    messages = capfd.readouterr().err
    assert f"going on after step {newest}" in messages and "step 56: dev" in messages


def test_a_signal_to_one_process_stops_all_and_resumes(train_flags, tmp_path):
    """With dropout, whose random state is each process's own."""

    def go(name, *more):
        train.main([*train_flags, "--dropout", "0.1", "--output_dir", str(tmp_path / name), *more])

    def stop_after_step_4(rank):
        original = Progress.step

        def step(self, now, *args):
            original(self, now, *args)
            if now == 4 and rank == 1:
                signal.raise_signal(signal.SIGTERM)

        Progress.step = step
        go("stopped")

    assert on_processes(2, lambda rank: go("whole")) == [0, 0]
    assert on_processes(2, stop_after_step_4) == [143, 143]
    assert States(tmp_path / "stopped" / "state").newest() == 4
    assert on_processes(2, lambda rank: go("stopped", "--resume")) == [0, 0]
    whole, stopped = (load_encoder(tmp_path / name).state_dict() for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_a_failing_process_ends_the_others(train_flags, tmp_path, capfd):
    def fail_on_one(rank):
        import model.objectives

        real, calls = model.objectives.contrastive_loss, []

        def fail(*args):
            calls.append(None)
            if rank == 1 and len(calls) == 3:
                raise RunError("the GPU of this process caught fire")
            return real(*args)

        model.objectives.contrastive_loss = fail
        train.main([*train_flags, "--output_dir", str(tmp_path / "run")])

    assert on_processes(2, fail_on_one) == [1, 1]
    errors = capfd.readouterr().err
    assert "caught fire" in errors and "process 0 cannot reach the others" in errors and "Traceback" not in errors


def test_processes_with_other_data_are_refused(train_flags, tmp_path, capfd):
    def other_seed(rank):
        train.main([*train_flags, "--output_dir", str(tmp_path / "run"), "--seed", str(rank)])

    assert on_processes(2, other_seed) == [1, 1]
    assert "process 1 has other flags or data than process 0" in capfd.readouterr().err


def test_every_process_is_told_that_the_folder_is_taken(tmp_path):
    def refused(rank):
        with distributed.processes(torch.device("cpu")), pytest.raises(UserError, match="another training writes"):
            with only_writer(tmp_path):
                pass

    with only_writer(tmp_path):
        assert on_processes(2, refused) == [0, 0]


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name in distributed.TORCHRUN:
        monkeypatch.setenv(name, "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="no GPU for process 3: --nproc_per_node is at most 2 here"):
        with distributed.processes(torch.device("cuda")):
            pass


def test_a_job_manager_that_sets_world_size_is_not_torchrun(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with distributed.processes(torch.device("cpu")) as device:
        assert device.type == "cpu" and distributed.world_size() == 1


def test_one_process_gathers_for_nothing():
    embeddings = torch.randn(3, 2)
    assert distributed.gather(embeddings, 3) is embeddings
    assert distributed.everyones("x") == ["x"] and distributed.largest(5) == 5
    assert np.array_equal(distributed.share(np.arange(4)), np.arange(4))
