"""What becomes of rows that cannot be used."""

import json
import sys
from pathlib import Path

from data.errors import UserError
from data.files import naming_path, place, unused_path

REJECTED_FILE = "rejected_rows.jsonl"


class Dropped:
    """Rows that were left out: how many by reason, an example of each, and with `skip` every one of them."""

    def __init__(self, skip=False, clean=None):
        self.skip = skip  # leave bad rows out, where otherwise the first is an error (--on_bad_row)
        self.clean = clean  # a row's values -> why it is debris, or None (data.prepare --clean)
        self.counts = {}  # reason -> number of rows
        self.examples = {}  # reason -> (place of the first, the row)
        self.rows = []  # with skip: (file, number, reason, row)

    def add(self, path, number, row, reason):
        """Count a row that says nothing and goes in any case."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self.examples.setdefault(reason, (place(path, number), row))
        if self.skip:
            self.rows.append((str(path), number, reason, row))

    def bad(self, path, number, row, reason, message):
        """Refuse a row that is wrong: UserError, `message` after file and line, unless bad rows are skipped.

        Without a message it says nothing, and goes in any case.
        """
        if message and not self.skip:
            raise UserError(f"{place(path, number)}: {message}")
        self.add(path, number, row, reason)

    def __str__(self):
        return "; ".join(
            f"{count:,} {reason} (first: {self.examples[reason][0]})" for reason, count in self.counts.items()
        )

    def write(self, folder):
        """Write the rows left out, with `skip`, to a new REJECTED_FILE in `folder`; return its path, or None."""
        if not self.rows:
            return None
        # in the order of the files: rows that a table's opening looks at come ahead of their turn
        files = list(dict.fromkeys(file for file, *_ in self.rows))
        rows = sorted(self.rows, key=lambda row: (files.index(row[0]), row[1] or 0))
        target = Path(folder) / REJECTED_FILE
        if target.exists():
            target = unused_path(target.parent, "rejected_rows-{}.jsonl")
        with naming_path(target), target.open("x", encoding="utf-8") as file:
            for path, number, reason, row in rows:
                record = {"file": path, "number": number, "reason": reason, "row": row}
                # ASCII: what could not be decoded can still be written
                file.write(json.dumps(record, default=str) + "\n")
        return file.name

    def report(self, folder):
        """Print the summary to stderr, if rows were left out, and `write` them."""
        if self.counts:
            file = self.write(folder)
            print(f"dropped: {self}" + (f"; the rows are in {file}" if file else ""), file=sys.stderr, flush=True)
