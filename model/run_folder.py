"""The run folder: what a training leaves on disk, apart from the weights' own format (checkpoint.py)."""

import contextlib
import csv
import json
import os
import shutil
import sys
from pathlib import Path

from data.dropped import REJECTED_FILE
from data.errors import UserError
from data.files import is_text, naming_path, read_json, unused_path, write_atomically, write_json
from model import distributed
from model.checkpoint import CHECKPOINT_FILE, MINI, MODEL_FOLDER, load_weights, save_encoder
from model.progress import LOG_COLUMNS
from model.states import States

CONFIG_FILE = "train_config.json"
METRICS_FILE = "dev_metrics.json"
LOG_FILE = "log.csv"
STATES_FOLDER = "state"
BOARD_FOLDER = "tensorboard"
FILES = (CHECKPOINT_FILE, CONFIG_FILE, METRICS_FILE, LOG_FILE, REJECTED_FILE)
NAMES = (STATES_FOLDER, *FILES, MODEL_FOLDER, BOARD_FOLDER)  # states first: none may be left without its config
LEFTOVERS = (".building-*", *(f".{name}.*.partial" for name in FILES))  # of a run that was killed while it saved


class RunFolder:
    """Config, log, best checkpoint and states of one training run. Of several processes, the first one writes.

    Whatever already has one of these names, an earlier run or a checkpoint put there by hand, moves to
    `previous-1/` (or the next free number) inside the folder, with a line that says so. Nothing is overwritten.

    Args:
        path: created if missing; see check_run_folder.
        config: JSON-able dict, every setting of the run.
        settings: callable config -> the flat dict of what a resumed run must have in common with it.
        resume: go on from the newest good state there; without one, start.
        keep_states: how many states stay.
        tensorboard: write the log there, too.

    Attributes:
        state: what the last `save_state` of the resumed run was given, else None.

    Raises:
        UserError: the run to be resumed had other settings.
    """

    def __init__(self, path, config, settings, resume=False, keep_states=2, tensorboard=False):
        self.path = Path(path)
        self.states = States(self.path / STATES_FOLDER, keep_states)
        self._writes = distributed.rank() == 0
        distributed.same_everywhere(json.dumps(settings(config), sort_keys=True))
        resume = resume and (self.path / CONFIG_FILE).is_file()
        differences = _differences(settings, self.path / CONFIG_FILE, config) if resume else []
        step = distributed.everyones(self.states.newest() if resume and self._writes else None)[0]
        if step is not None and differences:
            raise UserError(
                f"--resume: {self.path} was trained with other settings: {', '.join(differences)}; use the same, or "
                "another --output_dir"
            )
        self.state = None if step is None else self.states.load(step)
        if self._writes:
            # a run that was killed before its first state is begun again in its place
            metrics = self.path / METRICS_FILE
            begun = resume and not differences and (not metrics.is_file() or read_json(metrics).get("step") == 0)
            self._prepare(begun or step is not None, config)
        self.board = None
        if tensorboard and self._writes:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(self.path / BOARD_FOLDER, purge_step=0 if step is None else step + 1)

    def _prepare(self, in_place, config):
        self.path.mkdir(parents=True, exist_ok=True)
        for pattern in LEFTOVERS:
            for leftover in self.path.glob(pattern):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        if in_place:
            (self.path / REJECTED_FILE).unlink(missing_ok=True)  # will be written again
        elif in_the_way := [self.path / name for name in NAMES if (self.path / name).exists()]:
            previous = unused_path(self.path, "previous-{}")
            previous.mkdir()
            for path in in_the_way:
                path.rename(previous / path.name)
            print(f"{self.path} was in use; what was there is kept in {previous}", file=sys.stderr)
        if self.state is None:
            write_json(self.path / CONFIG_FILE, config)
        with write_atomically(self.path / LOG_FILE) as file:
            file.write((",".join(LOG_COLUMNS) + "\n" if self.state is None else self.state["log"]).encode())

    def log(self, **row):
        """Append a row to log.csv; columns not given stay empty."""
        if not self._writes:
            return
        path = self.path / LOG_FILE
        with naming_path(path), path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, LOG_COLUMNS, lineterminator="\n").writerow(row)
        if self.board:
            for name in row.keys() - {"step"}:
                self.board.add_scalar(name, row[name], row["step"])

    def save_best(self, encoder, metrics):
        """Keep this encoder as the run's best: model/, nli_checkpoint.pt and dev_metrics.json."""
        if self._writes:
            save_encoder(encoder, self.path)
            write_json(self.path / METRICS_FILE, metrics)

    def restore_best(self, encoder):
        """Load what `save_best` kept last into `encoder`, on every process."""
        if self._writes:
            load_weights(encoder, self.path)
        distributed.broadcast([*encoder.parameters(), *encoder.buffers()])

    def save_state(self, step, state):
        """Keep what is needed to go on after `step`, the log included; see States."""
        if self.board:
            self.board.flush()
        if self._writes:
            self.states.save(step, {**state, "log": (self.path / LOG_FILE).read_text(encoding="utf-8")})


def _differences(settings, path, config):
    """What a run that is resumed has not in common with the config at `path`, in words."""
    now = settings(config)
    try:
        before = settings(read_json(path))
    except (KeyError, TypeError, AttributeError):
        return [f"{path.name} (of another version of this program)"]
    names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    return [f"{name} (then {before.get(name)}, now {now.get(name)})" for name in names]


@contextlib.contextmanager
def only_writer(path):
    """A context in which no other training writes to a run folder, made if missing; UserError where one does."""
    path, taken = Path(path), False
    with contextlib.ExitStack() as stack:
        if distributed.rank() == 0:
            path.mkdir(parents=True, exist_ok=True)
            try:
                import fcntl

                folder = os.open(path, os.O_RDONLY)
                stack.callback(os.close, folder)
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system takes it from a process that dies
            except BlockingIOError:
                taken = True
            except (OSError, ImportError):
                pass  # a file system, or a Windows, that does not lock folders
        if distributed.everyones(taken)[0]:
            raise UserError(f"--output_dir {path}: another training writes there; name another folder, or wait for it")
        yield


def check_run_folder(path):
    """Raise UserError where no run may write: on a file, or among the packages of this repository."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"--output_dir {path}: is a file; name a folder")
    if not is_text(str(path.resolve())):  # what writes tokenizers and weights cannot take it
        raise UserError(f"--output_dir {str(path)!a}: is not UTF-8; name another folder")
    if (path / "__init__.py").exists() or (path / MODEL_FOLDER / "__init__.py").exists():
        raise UserError(f"--output_dir {path}: holds Python code; name another folder")
    if path.resolve() == MINI.resolve():
        raise UserError(f"--output_dir {path}: holds the encoder that the repository brings; name another folder")
