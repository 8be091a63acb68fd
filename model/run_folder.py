"""The run folder: what a training leaves on disk, apart from the weights' own format (checkpoint.py)."""

import csv
import json
import shutil
import sys
from pathlib import Path

from data.dropped import REJECTED_FILE
from data.errors import UserError
from data.files import write_atomically
from model.checkpoint import CHECKPOINT_FILE, MODEL_FOLDER, save_encoder
from model.metrics import json_ready

CONFIG_FILE = "train_config.json"
METRICS_FILE = "dev_metrics.json"
LOG_FILE = "log.csv"
NAMES = (MODEL_FOLDER, CHECKPOINT_FILE, CONFIG_FILE, METRICS_FILE, LOG_FILE, REJECTED_FILE)
LEFTOVERS = (".building-*", *(f".{name}.*.partial" for name in NAMES))  # of a run that was killed while it saved


class RunFolder:
    """Config, log, and best checkpoint of one training run.

    Whatever already has one of these names, an earlier run or a checkpoint put there by hand, moves to
    `previous-1/` (or the next free number) inside the folder, with a line that says so. Nothing is overwritten.

    Args:
        path: created if missing; see check_run_folder.
        config: JSON-able dict, every setting of the run.
        log_columns: the columns of log.csv, in order.
    """

    def __init__(self, path, config, log_columns):
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._make_way()
        self.log_columns = log_columns
        self._write_json(CONFIG_FILE, config)
        with (self.path / LOG_FILE).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(log_columns)

    def log(self, **row):
        """Append a row to log.csv; columns not given stay empty."""
        path = self.path / LOG_FILE
        try:
            with path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self.log_columns).writerow(row)
        except OSError as error:  # a full disk names no file
            raise OSError(error.errno, error.strerror, str(path)) from None

    def save_best(self, encoder, metrics):
        """Keep this encoder as the run's best: model/, nli_checkpoint.pt and dev_metrics.json."""
        save_encoder(encoder, self.path)
        self._write_json(METRICS_FILE, json_ready(metrics))

    def _write_json(self, name, value):
        with write_atomically(self.path / name) as file:
            file.write((json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())

    def _make_way(self):
        for pattern in LEFTOVERS:
            for leftover in self.path.glob(pattern):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        in_the_way = [self.path / name for name in NAMES if (self.path / name).exists()]
        if in_the_way:
            number = 1
            while (previous := self.path / f"previous-{number}").exists():
                number += 1
            previous.mkdir()
            for path in in_the_way:
                path.rename(previous / path.name)
            print(f"{self.path} was in use; what was there is kept in {previous}", file=sys.stderr)


def check_run_folder(path):
    """Raise UserError where no run may write: on a file, or among the packages of this repository."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"--output_dir {path}: is a file; name a folder")
    if (path / "__init__.py").exists() or (path / MODEL_FOLDER / "__init__.py").exists():
        raise UserError(f"--output_dir {path}: holds Python code; name another folder")
