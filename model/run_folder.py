"""The run folder: what a training leaves on disk, apart from the weights' own format (checkpoint.py)."""

import csv
import json
import sys
from pathlib import Path

from data.errors import UserError
from model.checkpoint import CHECKPOINT_FILE, MODEL_FOLDER, is_ours, save_encoder, write_atomically
from model.metrics import json_ready

CONFIG_FILE = "train_config.json"
METRICS_FILE = "dev_metrics.json"
LOG_FILE = "log.csv"
MARK = "kosimcse_run"  # a key of CONFIG_FILE: this folder is a run of ours


class RunFolder:
    """Config, log, and best checkpoint of one training run.

    Files of an earlier run of ours are replaced; anything else in the way is renamed, with a line that says so.

    Args:
        path: created if missing.
        config: JSON-able dict, every setting of the run.
        log_columns: the columns of log.csv, in order.
    """

    def __init__(self, path, config, log_columns):
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--output_dir {path}: is a file; name a folder")
        self.path.mkdir(parents=True, exist_ok=True)
        self._make_way()
        self.log_columns = log_columns
        self._write_json(CONFIG_FILE, {MARK: 1, **config})
        with (self.path / LOG_FILE).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(log_columns)

    def log(self, **row):
        """Append a row to log.csv; columns not given stay empty."""
        with (self.path / LOG_FILE).open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.log_columns).writerow(row)

    def save_best(self, encoder, metrics):
        """Keep this encoder as the run's best: model/, nli_checkpoint.pt and dev_metrics.json."""
        save_encoder(encoder, self.path)
        self._write_json(METRICS_FILE, json_ready(metrics))

    def _write_json(self, name, value):
        with write_atomically(self.path / name) as file:
            file.write((json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())

    def _make_way(self):
        try:
            ours = MARK in json.loads((self.path / CONFIG_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError):
            ours = False
        for name in (MODEL_FOLDER, CHECKPOINT_FILE, CONFIG_FILE, METRICS_FILE, LOG_FILE):
            path = self.path / name
            # a published checkpoint may have been put among the files of an earlier run
            if path.exists() and not (ours and (name != CHECKPOINT_FILE or is_ours(path))):
                number = 1
                while (kept := path.with_name(f"{path.stem}.before-{number}{path.suffix}")).exists():
                    number += 1
                path.rename(kept)
                print(f"{path} was not written by a run of ours; kept as {kept}", file=sys.stderr)
