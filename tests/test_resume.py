"""Trainings that end early (killed, interrupted, no disk, no memory, no number) and what --resume makes of them."""

import csv
import json
import os
import re
import resource
import shutil
import signal

import pytest
import torch

import evaluate
import train
from data.errors import RunError, UserError
from model.checkpoint import load_encoder
from model.states import States, restore
from tests import kill_resume
from tests.conftest import SAMPLE, stop_at


@pytest.fixture(scope="module")
def train_flags(tiny_bert, few_triplets, few_pairs):
    """16 steps; a state every second one."""
    return [
        *("--model", str(tiny_bert), "--train_data", str(few_triplets), "--batch_size", "12"),
        *("--valid_data", str(few_pairs), "--epochs", "2", "--eval_steps", "4", "--save_steps", "2"),
        *("--lr", "1e-3", "--pooling", "mean", "--keep_states", "3"),
    ]


@pytest.fixture(scope="module")
def finished(train_flags, tmp_path_factory):
    """The folder of a training with these flags alone: to be read, or copied."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KOSIMCSE_CACHE", str(folder / "cache"))
        train.main([*train_flags, "--output_dir", str(folder / "run")])
    return folder / "run"


@pytest.fixture
def run(train_flags, tmp_path):
    """Train into a folder of this name, with these flags besides; the folder."""

    def train_into(name, *more):
        train.main([*train_flags, "--output_dir", str(tmp_path / name), *more])
        return tmp_path / name

    return train_into


def final(folder):
    """The last step's state."""
    states = States(folder / "state")
    return states.load(states.newest())


def assert_same_weights(a, b):
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def back_to(step, finished, folder):
    """A copy of a finished run as a power cut after this step's state, but late for the log, could leave it."""
    shutil.copytree(finished, folder)
    for file in (folder / "state").iterdir():
        if int(file.stem.removeprefix("step-")) > step:
            file.unlink()


def test_killed_twenty_times(capsys):
    """By SIGKILL, each in a process of its own: 200 kills are `python -m tests.kill_resume`."""
    kill_resume.main(["--kills", "20"])
    kills, before_first_state = re.match(r"(\d+) kills, (\d+) of them", capsys.readouterr().out).groups()
    assert int(kills) >= 20 and int(before_first_state) < int(kills)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_resumes_to_the_same_weights(run, finished, monkeypatch, capsys, tmp_path, number, code):
    whole = finished
    with monkeypatch.context() as patch:
        stop_at(5, patch, lambda: signal.raise_signal(number))
        with pytest.raises(SystemExit) as exit_info:
            run("stopped")
    assert exit_info.value.code == code
    message = capsys.readouterr().err.splitlines()[-1]
    assert f"stopped by {number.name} after step 5" in message and message.endswith("--resume")
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    assert States(tmp_path / "stopped" / "state").newest() == 5
    if number == signal.SIGINT:
        return  # a state is a state, whichever signal left it
    stopped = run("stopped", "--resume")
    assert "going on after step 5" in capsys.readouterr().err
    assert_same_weights(final(whole)["model"], final(stopped)["model"])
    assert_same_weights(load_encoder(whole).state_dict(), load_encoder(stopped).state_dict())
    assert json.loads((whole / "dev_metrics.json").read_text()) == json.loads(
        (stopped / "dev_metrics.json").read_text()
    )


@pytest.mark.parametrize("moment", ["step", "evaluation"])
def test_a_signal_at_the_very_end_is_obeyed(run, monkeypatch, capsys, moment):
    """Else the next stage of a recipe would begin."""
    evaluations = []

    def evaluate(*args, original=train.evaluate_sts):
        evaluations.append(None)
        if len(evaluations) == 2:  # before the first step and after step 4
            signal.raise_signal(signal.SIGTERM)
        return original(*args)

    with monkeypatch.context() as patch:
        if moment == "step":
            stop_at(4, patch, lambda: signal.raise_signal(signal.SIGTERM))
        else:
            patch.setattr(train, "evaluate_sts", evaluate)
        with pytest.raises(SystemExit) as exit_info:
            run("stopped", "--max_steps", "4")
    assert exit_info.value.code == 143
    assert "stopped by SIGTERM after step 4" in capsys.readouterr().err.splitlines()[-1]
    run("stopped", "--max_steps", "4", "--resume")
    messages = capsys.readouterr().err
    assert "going on after step 4" in messages and "best: step" in messages


@pytest.mark.parametrize("damage", ["torn", "flipped", "no manifest", "bad manifest"])
def test_a_damaged_state_is_noticed(run, finished, tmp_path, capsys, damage):
    whole = shutil.copytree(finished, tmp_path / "whole")
    expected = final(whole)["model"]
    newest = whole / "state" / "step-00000016.pt"
    manifest = newest.with_suffix(".json")
    content = bytearray(newest.read_bytes())
    if damage == "torn":
        newest.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        newest.write_bytes(content)
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text("{")
    states = States(whole / "state")
    assert states.newest() == 14 and "that of step 14" in states.last_words()
    run("whole", "--resume")
    messages = capsys.readouterr().err
    assert "going on after step 14" in messages
    assert (f"{newest}: this state is damaged" in messages) == (damage != "no manifest")
    assert_same_weights(expected, final(whole)["model"])


def test_a_state_of_another_model_is_refused():
    now, then = (torch.nn.ModuleDict({"encoder": torch.nn.Linear(2, size)}) for size in (2, 3))
    with pytest.raises(UserError, match="--model is not the one this run began with .*size mismatch"):
        restore({"model": then.state_dict()}, now, None, None)


def test_no_good_state_starts_anew_and_overwrites_nothing(run, finished, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "run")
    for state in (folder / "state").glob("*.pt"):
        state.write_bytes(b"")
    run("run", "--resume", "--seed", "2")
    assert "starting: no state to resume" in capsys.readouterr().err
    assert len(list((folder / "previous-1" / "state").glob("*.pt"))) == 3


def test_states_after_damaged_ones_are_kept(run, finished, tmp_path, monkeypatch, capsys):
    """All states damaged, the run begun again and killed again: what it saved counts, what was damaged goes."""
    folder = shutil.copytree(finished, tmp_path / "run")
    for state in (folder / "state").glob("*.pt"):
        state.write_bytes(b"")
    (folder / "dev_metrics.json").unlink()  # killed before its first best checkpoint
    with monkeypatch.context() as patch:
        stop_at(3, patch, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(SystemExit):
            run("run", "--resume")
    assert sorted(file.name for file in (folder / "state").glob("*.pt")) == ["step-00000002.pt", "step-00000003.pt"]
    assert not (folder / "previous-1").exists()
    run("run", "--resume")
    assert "going on after step 3" in capsys.readouterr().err
    assert_same_weights(final(finished)["model"], final(folder)["model"])


def test_names_that_are_no_text(run, capsys, tmp_path):
    """A Korean name in cp949, as an archive made on Windows leaves it."""
    data = tmp_path / os.fsdecode("한글.tsv".encode("cp949"))
    shutil.copy(SAMPLE / "train_nli.tsv", data)
    run("run", "--train_data", str(data), "--max_steps", "2")
    run("run", "--train_data", str(data), "--max_steps", "2", "--resume")
    assert "going on after step 2" in capsys.readouterr().err


def test_two_trainings_do_not_share_a_folder(run, monkeypatch, capsys):
    with monkeypatch.context() as patch:

        def second():
            with pytest.raises(SystemExit):
                run("run", "--max_steps", "4", "--seed", "9")
            assert "another training writes there" in capsys.readouterr().err.splitlines()[-1]

        stop_at(3, patch, second)
        folder = run("run", "--max_steps", "4")
    assert (
        not (folder / "previous-1").exists()
        and json.loads((folder / "train_config.json").read_text())["flags"]["seed"] != 9
    )
    run("run", "--max_steps", "4")  # it is free again
    assert (folder / "previous-1").exists()


def test_resume_without_states_overwrites_no_good_checkpoint(run, finished, tmp_path, monkeypatch):
    folder = shutil.copytree(finished, tmp_path / "run")
    best = load_encoder(folder).state_dict()
    shutil.rmtree(folder / "state")  # to save space
    run("run", "--resume", "--max_steps", "2")
    shutil.copytree(finished, tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "state")
    stop_at(1, monkeypatch, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit):
        run("other", "--resume")
    for kept in (folder / "previous-1", folder.parent / "other" / "previous-1"):
        assert_same_weights(best, load_encoder(kept).state_dict())


def test_a_second_sigterm_waits_and_a_second_ctrl_c_does_not(run, monkeypatch, tmp_path):
    def twice(number):
        signal.raise_signal(number)
        signal.raise_signal(number)

    with monkeypatch.context() as patch:  # Slurm and torchrun send one each
        stop_at(3, patch, lambda: twice(signal.SIGTERM))
        with pytest.raises(SystemExit) as exit_info:
            run("term")
    assert exit_info.value.code == 143 and States(tmp_path / "term" / "state").newest() == 3
    with monkeypatch.context() as patch:
        stop_at(3, patch, lambda: twice(signal.SIGINT))
        with pytest.raises(SystemExit) as exit_info:
            run("int")
    assert exit_info.value.code == 130 and States(tmp_path / "int" / "state").newest() == 2


def test_resume_of_a_run_by_an_earlier_version(run, finished, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "run")
    config = json.loads((folder / "train_config.json").read_text())
    del config["precision"]
    (folder / "train_config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit) as exit_info:
        run("run", "--resume")
    assert exit_info.value.code == 2 and "of another version of this program" in capsys.readouterr().err


def test_resuming_from_a_model_in_the_run_folder_is_refused(run, finished, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "run")
    with pytest.raises(SystemExit) as exit_info:
        run("run", "--resume", "--model", str(folder / "nli_checkpoint.pt"))
    assert exit_info.value.code == 2 and "is in --output_dir" in capsys.readouterr().err


def test_a_finished_run_is_left_as_it_is(run, capsys):
    folder = run("run", "--max_steps", "4")
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    last_line = capsys.readouterr().err.splitlines()[-1]
    run("run", "--max_steps", "4", "--resume")
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("going on after step 4") for line in lines)
    assert lines[-1].split(", peak")[0] == last_line.split(", peak")[0]  # score, time, examples/s: of the training
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_other_settings_are_refused(run, capsys, tmp_path):
    folder = run("run", "--max_steps", "4", "--precision", "fp32")
    log = (folder / "log.csv").read_text()
    other = tmp_path / "other.tsv"
    other.write_text("가나다\t라마바\t사아자\n" * 400, encoding="utf-8")
    several = ("--lr", "2e-3", "--compile", "--precision", "bf16", "--micro_batch_tokens", "100")
    for more, differences in {
        several: [
            *("--lr (then 0.001, now 0.002)", "--compile (then False, now True)"),
            *("--precision (then fp32, now bf16)", "--micro_batch_tokens (then 8192, now 100)"),
        ],
        ("--train_data", str(other)): ["tasks (objective, weight, batch size, SHA-256 of the data) (then [['simcse'"],
        ("--batch_size", "13"): ["tasks (objective, weight"],
    }.items():
        with pytest.raises(SystemExit) as exit_info:
            run("run", "--max_steps", "4", "--precision", "fp32", "--resume", *more)
        message = capsys.readouterr().err
        assert exit_info.value.code == 2 and all(difference in message for difference in differences)
    assert (folder / "log.csv").read_text() == log and not (folder / "previous-1").exists()


def test_flags_that_change_nothing_may_change(run, finished, tmp_path):
    back_to(12, finished, tmp_path / "stopped")
    stopped = run("stopped", "--resume", "--cache_gradients", "--save_steps", "5", "--keep_states", "1")
    assert [file.name for file in (stopped / "state").glob("*.pt")] == ["step-00000016.pt"]
    assert_same_weights(final(finished)["model"], final(stopped)["model"])


def test_the_log_goes_on(run, finished, tmp_path):
    """Rows after the state that is resumed are written again, none twice."""
    back_to(12, finished, tmp_path / "stopped")  # its log goes on to step 16
    with (run("stopped", "--resume") / "log.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    with (finished / "log.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == steps


def test_a_full_disk_leaves_the_last_good_state(run, finished, monkeypatch, capsys, tmp_path):
    """A limit on the size of files, set at step 5, is what a full disk is to the state of step 6."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with monkeypatch.context() as patch:
            stop_at(5, patch, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard)))
            with pytest.raises(SystemExit) as exit_info:
                run("run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert exit_info.value.code == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert "step-00000006.pt: the state could not be written" in message and "that of step 4" in message
    assert States(tmp_path / "run" / "state").newest() == 4
    assert_same_weights(final(finished)["model"], final(run("run", "--resume"))["model"])


def test_not_a_number_never_reaches_the_disk(run, monkeypatch, capsys, tmp_path):
    import model.objectives

    real, calls = model.objectives.contrastive_loss, []

    def bad_from_step_6(*args):
        calls.append(None)
        return real(*args) * (torch.nan if len(calls) >= 6 else 1)

    monkeypatch.setattr("model.objectives.contrastive_loss", bad_from_step_6)
    with pytest.raises(SystemExit) as exit_info:
        run("run")
    assert exit_info.value.code == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert "the loss is nan at step 6" in message and "the last good state is that of step 4" in message
    assert all(value.isfinite().all() for value in load_encoder(tmp_path / "run").state_dict().values())
    assert all(value.isfinite().all() for value in final(tmp_path / "run")["model"].values())


def test_weights_that_are_not_numbers_never_reach_the_disk(run, monkeypatch, tmp_path):
    """A finite loss with an infinite gradient: the weights are spoilt before a loss shows it."""

    def spoil(parameters, step, *args):
        if step == 6:
            parameters[0].data[0] = torch.inf
        real(parameters, step, *args)

    from model import trainer

    real = trainer.require_finite
    monkeypatch.setattr("model.trainer.require_finite", spoil)
    with pytest.raises(SystemExit):
        run("run")
    assert States(tmp_path / "run" / "state").newest() == 4


def test_out_of_memory_is_a_sentence(run, monkeypatch, capsys):
    error = torch.OutOfMemoryError("CUDA out of memory")
    stop_at(3, monkeypatch, lambda: (_ for _ in ()).throw(error))
    with pytest.raises(SystemExit) as exit_info:
        run("run")
    assert exit_info.value.code == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert "--micro_batch_tokens" in message and "--cache_gradients" in message and "that of step 2" in message


@pytest.mark.parametrize(
    "error, is_memory",
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_what_out_of_memory_looks_like(fails, monkeypatch, tiny_bert, error, is_memory):
    """Outside of training, where a model is loaded or sentences are encoded; any other error keeps its traceback."""

    def no_room(*args, **kwargs):
        raise error

    monkeypatch.setattr(evaluate, "load_encoder", no_room)
    argv = ["--model", tiny_bert, "--test_data", SAMPLE / "test_sts.tsv"]
    if is_memory:
        assert "out of memory" in fails(evaluate.main, argv, 1)
    else:
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            evaluate.main([str(argument) for argument in argv])


def test_patience_and_max_steps(run, monkeypatch):
    from model.metrics import CORRELATIONS

    scores = iter([10.0, 30.0, 20.0, 30.0, 25.0])

    def evaluate(*args):
        return {"avg": 0.0, **dict.fromkeys(CORRELATIONS, 0.0), "cosine_spearman": next(scores)}

    monkeypatch.setattr("train.evaluate_sts", evaluate)
    flags = ("--max_steps", "30", "--patience", "2", "--eval_steps", "2")
    folder = run("run", *flags)
    assert final(folder)["step"] == 6 and final(folder)["best"]["step"] == 2
    run("run", *flags, "--resume")  # stopped early is finished
    assert final(folder)["step"] == 6
    monkeypatch.undo()
    longer = run("longer", "--max_steps", "17", "--eval_steps", "100", "--save_steps", "100")
    assert final(longer)["step"] == 17 and final(longer)["schedule"]["last_epoch"] == 17
    with (longer / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[-1]["epoch"] == "3" and float(rows[-1]["lr"]) == pytest.approx(1e-3 / 16)


def test_max_grad_norm(run):
    """Adam hardly sees the scale of gradients, but its second moments do."""
    clipped, free = (
        final(run(name, "--max_steps", "1", *more)) for name, *more in (("a", "--max_grad_norm", "1e-3"), ("b",))
    )
    norms = [
        sum(state["exp_avg_sq"].sum() for state in result["optimizer"]["state"].values()).sqrt().item()
        for result in (clipped, free)
    ]
    assert norms[0] == pytest.approx(1e-3 * 0.001**0.5, rel=1e-3) and norms[1] > 10 * norms[0]


def test_states_on_disk(tmp_path):
    states = States(tmp_path / "state", keep=1)
    states.save(3, {"tensor": torch.arange(3), "text": "가", "nested": [{"x": 1.5}]})
    assert states.newest() == 3 and states.load(3)["nested"] == [{"x": 1.5}]
    (tmp_path / "state" / ".step-00000009.pt.12.partial").write_bytes(b"half")
    states.save(5, {})
    assert sorted(file.name for file in (tmp_path / "state").iterdir()) == ["step-00000005.json", "step-00000005.pt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="could not be written"):
        States(tmp_path / "file").save(1, {})


def test_tensorboard_and_plots(run, finished, fails, monkeypatch, tmp_path, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    import model.plots

    folder = run("run", "--tensorboard", "--max_steps", "8")
    (events,) = (folder / "tensorboard").glob("events.out.*")
    board = EventAccumulator(str(events)).Reload()
    assert [scalar.step for scalar in board.Scalars("cosine_spearman")] == [0, 4, 8]
    model.plots.main([str(folder), str(finished), "--output", str(tmp_path / "runs.png")])
    assert (tmp_path / "runs.png").read_bytes().startswith(b"\x89PNG")
    assert "not a run folder" in fails(model.plots.main, [tmp_path])
    assert "ends in .png" in fails(model.plots.main, [folder, "--output", "runs.pdf"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as exit_info:
        run("no", "--tensorboard")
    assert exit_info.value.code == 2 and "pip install tensorboard" in capsys.readouterr().err


def test_the_last_line_and_a_quiet_log(run, capsys):
    run("run", "--device", "cpu", "--precision", "fp32", "--max_steps", "4", "--select_by", "last")
    lines = capsys.readouterr().err.splitlines()
    assert "cpu in fp32" in lines[0]
    assert [line.split(":")[0] for line in lines[1:]] == ["step 0", "step 4", "best"]
    assert all(words in lines[-1] for words in ("dev cosine_spearman", "s of training", "examples/s", "peak memory"))
