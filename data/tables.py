"""Which columns of a table are wanted, by name or by place."""

import functools
import itertools
import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

from data.dropped import Dropped
from data.errors import UserError
from data.files import READERS, file_format, place, problem, require_files

# Every name that a column is known by somewhere: a first line of nothing else is a header, not data.
HEADER_WORDS = set(
    "anchor positive negative premise hypothesis entailment contradiction sentence1 sentence2 sentence3 gold_label "
    "label sent0 sent1 hard_neg pos neg query question answer text text1 text2 "
    "sentence score genre filename year id guid".split()
)
EMPTY = ("empty", "a sentence is empty; write one or remove the row")
HEAD = 100  # rows looked at to tell kinds apart that have the same columns


class Layout(NamedTuple):
    """A kind of table: what its columns hold and how they are called."""

    columns: tuple  # a tuple of header names for each column, the best first; the first is what messages call it
    numbers: tuple = ()  # the columns (from 0) that may hold a number instead of text
    # a row's values -> None where it can be used, else (reason, message); without a message it says nothing
    check: Callable = lambda values: None if all(values) else EMPTY

    @property
    def names(self):
        return ", ".join(names[0] for names in self.columns)


class Table:
    """An open table whose kind and columns are known.

    Args:
        path: the file; its format is told from its name.
        layouts: {kind: Layout}, the kinds that will do, preferred first.
        encoding: of text files.
        columns: for each column wanted, its header name or (.tsv, .csv) its number from 1; default: known names in
            the header, or all columns of a .tsv without header. Line 1 of a .csv is its header in any case; that of
            a .tsv is one if `columns` or known names are in it (with bad rows skipped: of the first that may be a row).
        dropped: a `Dropped`.
        default: the format of a file whose name tells none.

    Attributes:
        kind: key of the layout that fits.
        header: the names of the file's columns, or None.

    Raises:
        UserError: the file is unreadable or empty, or none of the layouts fits.
    """

    def __init__(self, path, layouts, encoding="utf-8", columns=None, dropped=None, default=".tsv"):
        self.path, self.layouts = path, layouts
        self.dropped = Dropped() if dropped is None else dropped
        columns = columns and [unicodedata.normalize("NFC", column) for column in columns]  # as what is read
        self.format = file_format(path, default)

        require_files([path])
        self._records = READERS[self.format](path, encoding, functools.partial(self.dropped.bad, path))
        self._head = []
        self._advance("the file is empty")
        while True:
            self._first = self._head[0]
            self.header = self._find_header(columns)
            if fitting := self._fit(columns):  # [(kind, picked columns)]
                break
            too_short = columns and _are_numbers(columns) and max(map(int, columns)) > self._width
            if not self.dropped.skip or self.header or (columns and not too_short):
                self._refuse(columns)
            self.dropped.add(path, *self._first, "wrong number of columns")
            self._advance("")
        if self._is_list and self.header:
            self._advance("holds no rows")
        self._values = self._list_rows if self._is_list else self._dict_rows
        widest = max(len(picked) for _, picked in fitting)
        fitting = [(kind, picked) for kind, picked in fitting if len(picked) == widest]
        # where several have such columns: what most of the first rows are usable as; of equals the preferred one
        self.kind, self._picked = max(fitting, key=lambda pair: self._usable(*pair))

    def rows(self, lenient=False):
        """Yield the values of every usable row: the wanted columns in the layout's order.

        Values are strings without tabs and line feeds; what a .jsonl, .json or .parquet file holds as a number
        stays one. Rows that say nothing are dropped and counted; with `lenient` so are bad ones.
        """
        dropped, check = self.dropped, self.layouts[self.kind].check
        on_bad = (lambda *row_and_why: dropped.add(*row_and_why[:4])) if lenient else dropped.bad
        records = itertools.chain(self._head, self._records)
        for number, values in self._values(records, self.kind, self._picked, on_bad):
            if dropped.clean and (reason := dropped.clean(values)):
                dropped.add(self.path, number, values, reason)
            elif found := check(values):
                on_bad(self.path, number, values, *found)
            else:
                yield values

    def _advance(self, otherwise):
        """Leave the first record behind; UserError where there is no other: all were skipped, or `otherwise`."""
        self._head = self._head[1:] or list(itertools.islice(self._records, HEAD))
        if not self._head:
            nothing = f"no usable row; dropped {self.dropped}" if self.dropped.counts else otherwise
            raise UserError(f"{self.path}: {nothing}")

    def _list_rows(self, records, kind, picked, on_bad):
        width = self._width
        whole = picked == list(range(width))
        may_hold_tabs = self.format in (".csv", ".txt")
        for number, fields in records:
            if len(fields) != width:
                on_bad(self.path, number, fields, "wrong number of columns", self._wrong_columns(fields, width))
                continue
            values = fields if whole else [fields[i] for i in picked]
            yield number, [_one_line(value) for value in values] if may_hold_tabs else values

    def _dict_rows(self, records, kind, picked, on_bad):
        layout = self.layouts[kind]
        for number, record in records:
            values = []
            for column, name in enumerate(picked):
                value, why = _look_up(record, name), None
                if isinstance(value, str):
                    value = _one_line(unicodedata.normalize("NFC", value))
                    why = problem(value)
                elif value is None:
                    why = "missing column", f"{name!r} is missing or null; expected ({layout.names})"
                elif column not in layout.numbers or isinstance(value, bool) or not isinstance(value, (int, float)):
                    why = "not text", f"{name!r} is not text but {type(value).__name__}; expected ({layout.names})"
                if why:
                    on_bad(self.path, number, record, *why)
                    break
                values.append(value)
            else:
                yield number, values

    def _find_header(self, columns):
        """The names of the columns, or None where the first record is data."""
        record = self._first[1]
        if isinstance(record, dict):
            return _keys(record)
        if self.format == ".txt":
            return None
        lower = [field.lower() for field in record]
        if columns and not _are_numbers(columns):
            return record if set(columns) <= set(record) else None
        known = all(field in HEADER_WORDS for field in lower)
        if known or self.format == ".csv" or any(self._by_names(layout, lower) for layout in self.layouts.values()):
            return lower
        return None

    def _fit(self, columns):
        """[(kind, picked)] of the layouts that fit: `picked` are positions, or keys for records that are dicts."""
        is_list = self._is_list = isinstance(self._first[1], list)
        self._width = len(self._first[1])
        fitting = []
        for kind, layout in self.layouts.items():
            picked = None
            if not columns:
                if self.header:
                    names = self._by_names(layout, self.header)
                    picked = [self._position(name) for name in names] if names and is_list else names
                elif self._width == len(layout.columns):
                    picked = list(range(self._width))
            elif len(columns) != len(layout.columns):
                continue
            elif self.header and set(columns) <= set(self.header):
                picked = [self._position(name) for name in columns] if is_list else list(columns)
            elif is_list and _are_numbers(columns) and max(map(int, columns)) <= self._width:
                picked = [int(number) - 1 for number in columns]
            if picked is not None:
                fitting.append((kind, picked))
        return fitting

    def _position(self, name):
        if self.header.count(name) > 1:
            raise UserError(f"{place(self.path, self._first[0])}: the header names {name!r} twice; rename one")
        return self.header.index(name)

    @staticmethod
    def _by_names(layout, header):
        """The header's name of each column of the layout, or None."""
        names = [next((name for name in known if name in header), None) for known in layout.columns]
        return None if None in names else names

    def _usable(self, kind, picked):
        """How many of the first rows are usable as `kind`."""
        rows = self._values(self._head, kind, picked, on_bad=lambda *row_and_why: None)
        return sum(self.layouts[kind].check(values) is None for _, values in rows)

    def _refuse(self, columns):
        number, record = self._first
        widths = sorted({len(layout.columns) for layout in self.layouts.values()})
        if columns and len(columns) not in widths:
            raise UserError(
                f"--columns: {len(columns)} given, expected {' or '.join(map(str, widths))} ({self._expected()})"
            )
        where = place(self.path, number)
        if columns:
            found = self.header or record
            raise UserError(f"{where}: no columns {' '.join(columns)}; found {' | '.join(map(str, found))[:200]}")
        if self.header:
            found = " | ".join(map(str, self.header))[:200]
            message = f"{where}: expected the columns {self._expected()}, found {found}; name yours with --columns"
            if self.format == ".csv":
                message += " (line 1 of a .csv is its header; add one if there is none)"
            raise UserError(message)
        raise UserError(f"{where}: {self._wrong_columns(record, widths[-1])}")

    def _expected(self):
        return " or ".join(dict.fromkeys(f"({layout.names})" for layout in self.layouts.values()))

    def _wrong_columns(self, fields, width):
        """What is wrong with a row that has not `width` fields, in words."""
        shown = " | ".join(field[:20] for field in fields[:4])
        found = f"{len(fields)} column{'s' * (len(fields) != 1)} ({shown})"
        if self.header:
            expected = f"{width} as in the header"
        elif self.format == ".txt":
            expected = self._expected()
        else:
            expected = f"{width} separated by tabs {self._expected()}, or a header with such names in line 1"
        advice = ""
        if len(fields) == 1 and "," in fields[0] and self.format == ".tsv":
            advice = "; save it with tabs between the columns, or name it .csv"
        elif self.format == ".txt" and "\t" in fields[0]:
            advice = "; a table with tabs is named .tsv"
        elif any("\r" in field for field in fields):
            advice = "; its lines end in CR alone: save it with LF"
        elif len(fields) > width and not self.header:
            advice = "; pick some with --columns"
        return f"found {found}, expected {expected}{advice}"


def _one_line(text):
    """Text whose tabs and line breaks are single blanks, so that it can stand in a table."""
    return (re.sub(r"[\t\r\n]+", " ", text) if any(char in text for char in "\t\r\n") else text).strip()


def _keys(record):
    """The record's keys, and with a dot those inside its objects ("labels.real-label")."""
    inner = ([f"{key}.{name}" for name in value] for key, value in record.items() if isinstance(value, dict))
    return [*record, *itertools.chain.from_iterable(inner)]


def _look_up(record, name):
    """record["labels.real-label"], or record["labels"]["real-label"]; None where there is none."""
    if name in record:
        return record[name]
    outer, dot, inner = name.partition(".")
    return record[outer].get(inner) if dot and isinstance(record.get(outer), dict) else None


def _are_numbers(columns):
    return all(re.fullmatch("[1-9][0-9]{0,3}", column) for column in columns)
