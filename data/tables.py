"""The one reader of text and tables: strict decoding, NFC, and errors that name file and line."""

import csv
import io
import json
import unicodedata
from pathlib import Path

from data.errors import UserError


def require_files(paths):
    """Raise UserError for the first path that is not a file: a typo shows before anything long begins."""
    for path in map(Path, paths):
        if not path.is_file():
            raise UserError(f"{path}: {'is a folder, not a file' if path.is_dir() else 'no such file'}")


def read_text(path, encoding="utf-8"):
    """A whole file as one string, Unicode NFC, without a byte order mark, every line end a single LF.

    Composed here, so that a premise typed on macOS (decomposed) and its twin typed elsewhere are the
    same key when rows are grouped.

    Raises:
        UserError: the file is missing, empty, or not in `encoding`; the sentence names the line.
    """
    path = Path(path)
    require_files([path])
    content = path.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") and not encoding.lower().startswith(("utf-16", "utf16")):
        raise UserError(f"{path}, line 1: this is UTF-16; add --encoding utf-16")
    if content.startswith(b"PK\x03\x04"):
        raise UserError(f"{path}: an Excel workbook or another archive; save the table as tab-separated text")
    try:
        text = content.decode(encoding)
    except LookupError:
        raise UserError(f"--encoding {encoding}: no such encoding; try utf-8, cp949 or utf-16") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        hint = (
            "Korean spreadsheets save cp949: try --encoding cp949 (for all files of a call)"
            if encoding.lower() in ("utf-8", "utf8")
            else "try --encoding utf-8 (for all files of a call)"
        )
        found = content[error.start : error.start + 1].hex() or "the end of the file"
        raise UserError(f"{path}, line {line}: not valid {encoding} (byte 0x{found}); {hint}") from None
    except UnicodeError as error:  # UTF-16 without its mark and the like
        raise UserError(f"{path}: not valid {encoding} ({error}); try --encoding utf-8") from None
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    if not text.strip():
        raise UserError(f"{path}: the file is empty")
    return unicodedata.normalize("NFC", text)


def read_tsv(path, encoding="utf-8"):
    """Rows of a tab-separated file as (line number from 1, fields), fields stripped of surrounding blanks.

    A plain split on tabs: quotes are text. KorNLI and KorSTS hold unbalanced double quotes, and a
    reader that honours them swallows rows without an error. Only LF ends a line (str.splitlines would
    also cut at U+2028 and others inside a sentence). Blank lines at the end of the file are not rows.
    """
    lines = read_text(path, encoding).rstrip("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        yield number, [field.strip() for field in line.split("\t")]


def read_csv(path, encoding="utf-8"):
    """Rows of a comma-separated file with ordinary quoting as (line number where the row ends, fields)."""
    reader = csv.reader(io.StringIO(read_text(path, encoding), newline=""), strict=True)
    try:
        for fields in reader:
            if fields:
                yield reader.line_num, [field.strip() for field in fields]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from None


def read_json(path, encoding="utf-8"):
    """A JSON file's value.

    Raises:
        UserError: not JSON; the sentence names the line.
    """
    try:
        return json.loads(read_text(path, encoding))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from None
    except RecursionError:
        raise UserError(f"{path}: not usable JSON (nested too deeply)") from None


def read_lines(path, encoding="utf-8"):
    """The non-blank lines of a plain text file, stripped: one sentence each."""
    return [line.strip() for line in read_text(path, encoding).split("\n") if line.strip()]


def wrong_columns(path, line, fields, expected):
    """The error for a row of `fields` where `expected` columns (in words) should be."""
    if not any(fields):
        return UserError(f"{path}, line {line}: an empty line; remove it")
    shown = " | ".join(field[:20] for field in fields[:4])
    found = f"{len(fields)} column{'s' * (len(fields) != 1)} ({shown})"
    advice = "; save it with tabs between the columns, not commas" if len(fields) == 1 and "," in fields[0] else ""
    return UserError(f"{path}, line {line}: found {found}, expected {expected}{advice}")
