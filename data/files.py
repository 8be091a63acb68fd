"""Files into records: decompressed, decoded, Unicode NFC, one record a line, row or entry.

Composed (NFC) here, so that a premise typed on macOS (decomposed) and its twin typed elsewhere are the same key when
rows are grouped.
"""

import codecs
import contextlib
import csv
import errno
import gzip
import hashlib
import io
import itertools
import json
import os
import re
import unicodedata
import zlib
from pathlib import Path

from data.errors import RunError, UserError, first_line

UNITS = {".json": "entry", ".parquet": "row"}  # how a record's number is called; elsewhere it is a line's
CHUNK = 1 << 22  # characters read at a time
LONGEST = 100_000  # characters: no row of sentences is longer, but a file that lost its line ends is
CSV_ROW = re.compile(r'(?:"[^"]*(?:""[^"]*)*"|[^",]*)(?:,(?:"[^"]*(?:""[^"]*)*"|[^",]*))*')  # RFC 4180, one line


def unused_path(folder, form):
    """The first path `form`, with 1, 2, ... in the place of its {}, that `folder` does not have."""
    return next(path for number in itertools.count(1) if not (path := Path(folder) / form.format(number)).exists())


@contextlib.contextmanager
def naming_path(path):
    """A context whose OSErrors name `path`: a full disk, unlike a file that is missing, names none by itself."""
    try:
        yield
    except OSError as error:
        # numpy's know neither number nor text of their own
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from None


def require_files(paths):
    """Raise UserError for the first path that is not a file: a typo shows before anything long begins."""
    for path in map(Path, paths):
        if not path.is_file():
            special = "not an ordinary file; save it to one first" if path.exists() else "no such file"
            raise UserError(f"{path}: {'is a folder, not a file' if path.is_dir() else special}")


def file_format(path, default=".tsv"):
    """The format a file's name tells, a final .gz aside; `default` where it tells none."""
    name = str(path).lower().removesuffix(".gz")
    return next((suffix for suffix in READERS if name.endswith(suffix)), default)


def place(path, number):
    """'file, line 7' (row or entry where the format has no lines); the file alone where there is no number."""
    return str(path) if number is None else f"{path}, {UNITS.get(file_format(path), 'line')} {number}"


@contextlib.contextmanager
def write_atomically(path):
    """A binary file that takes its name only when it is complete: temporary name, fsync, rename; OSErrors name it."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with naming_path(path):
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _tsv(path, encoding, on_bad):
    """A plain split on tabs: quotes are text.

    KorNLI and KorSTS hold unbalanced double quotes, and a reader that honours them swallows rows without an error.
    """
    for number, line in _lines(path, encoding, on_bad):
        yield number, [field.strip() for field in line.split("\t")]


def _csv(path, encoding, on_bad):
    """Ordinary quoting, but a row is a line: one quotation mark too many cannot swallow the rows after it."""
    for number, line in _lines(path, encoding, on_bad):
        line = line.rstrip("\r").replace("\r", " ")  # csv would take a CR for a line end
        if '"' not in line:
            fields = line.split(",")
        elif CSV_ROW.fullmatch(line):
            fields = next(csv.reader([line], strict=True))
        else:
            message = (
                'not valid CSV (a quotation mark out of place: a field that holds one is written "like ""this""", '
                "and a row is one line); save text with line breaks as .jsonl"
            )
            on_bad(number, line, "not valid CSV", message)
            continue
        yield number, [field.strip() for field in fields]


def _jsonl(path, encoding, on_bad):
    """A JSON object a line."""
    for number, line in _lines(path, encoding, on_bad):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            why = "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "msg", error)
            on_bad(number, line, "not valid JSON", f"not valid JSON ({why})")
            continue
        if isinstance(record, dict):
            yield number, record
        else:
            on_bad(number, line, "not an object", 'expected an object {"column": "text", ...}')


def _json(path, encoding, on_bad):
    """A JSON list of objects, or one object."""
    entries = read_json(path, encoding, kind=object)
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries], start=1):
        if isinstance(entry, dict):
            yield number, entry
        else:
            on_bad(number, entry, "not an object", 'expected an object {"column": "text", ...}')


def _parquet(path, encoding, on_bad):
    """Rows as dicts, read by pyarrow a batch at a time."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise RunError(f"{path}: Parquet files need one more package: pip install pyarrow") from None
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=10_000):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    # what pyarrow raises for a damaged file is of many kinds, decoding and memory errors among them
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError, KeyError, OverflowError) as error:
        raise UserError(
            f"{path}, after row {number}: not a Parquet file, or a damaged one ({first_line(error)})"
        ) from None


def _txt(path, encoding, on_bad):
    for number, line in _lines(path, encoding, on_bad):
        yield number, [line.strip()]


# Each yields (number from 1, record) lazily; a record is a list of strings, surrounding blanks stripped, or a dict.
# What is none goes to on_bad(number, record, reason, message), which raises or returns: then it is left out.
READERS = {".tsv": _tsv, ".csv": _csv, ".jsonl": _jsonl, ".json": _json, ".parquet": _parquet, ".txt": _txt}


def read_json(path, encoding="utf-8", kind=dict):
    """A JSON file's value, which is a `kind`: dict, list or, for any, object.

    Raises:
        UserError: not JSON (the sentence names the line), or another kind.
    """
    require_files([path])
    text = "".join(_chunks(path, encoding))
    if not text.strip():
        raise UserError(f"{path}: the file is empty")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        advice = "; a file with an object a line is named .jsonl" if error.msg == "Extra data" else ""
        raise UserError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}){advice}") from None
    except (ValueError, RecursionError):  # a number of thousands of digits, brackets of thousands of levels
        raise UserError(f"{path}: not usable JSON (nested too deeply, or a number too long)") from None
    if not isinstance(value, kind):
        expected = "a list [...]" if kind is list else "an object {...}"
        raise UserError(f"{path}: expected {expected}, found {text.strip()[:40]!r}")
    return value


def sha256(path):
    """Of a file's content, hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path, value):
    """Write a value as JSON, whole or not at all; see write_atomically. JSON has no nan: it becomes null."""
    value = json.loads(json.dumps(value), parse_constant=lambda constant: None)
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    with write_atomically(path) as file:
        file.write(text.encode(errors="backslashreplace"))  # a file's name may hold bytes that are no text


def _lines(path, encoding, on_bad):
    """(number from 1, line) of a text file, blank lines left out; bad lines go to `on_bad`.

    Only LF ends a line: str.splitlines would also cut at U+2028 and others inside a sentence.
    """
    number = 0
    for text in _chunks(path, encoding):
        lines = text.removesuffix("\n").split("\n")
        suspicious = "\0" in text or not is_text(text) or max(map(len, lines)) > LONGEST
        if suspicious and sum(not is_text(line) for line in lines) > len(lines) / 2:
            line = next(line for line in lines if not is_text(line))
            raise UserError(f"{place(path, number + lines.index(line) + 1)}: {_undecodable(line, encoding)}")
        for line in lines:
            number += 1
            if not line or line.isspace():
                continue
            if suspicious and (found := problem(line, encoding)):
                on_bad(number, line, *found)
            else:
                yield number, line


def _chunks(path, encoding):
    """A text file's content in pieces of whole lines, NFC, without byte order mark.

    Bytes that are not in `encoding` come as lone surrogates, for `_lines` to find (in UTF-16 they are an error).
    """
    with Path(path).open("rb") as raw:
        try:
            file = gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw
            _check_start(path, file.peek(1), encoding)  # all that is in its buffer
            text = io.TextIOWrapper(
                file, encoding, "strict" if _is_utf16(encoding) else "surrogateescape", newline="\n"
            )
            mark = "\ufeff"
            while lines := text.readlines(CHUNK):
                yield unicodedata.normalize("NFC", "".join(lines).removeprefix(mark))
                mark = ""
        except LookupError:  # also for codecs that are not of text, such as "hex"
            raise UserError(f"--encoding {encoding}: no such encoding; try utf-8, cp949 or utf-16") from None
        except UnicodeError as error:
            raise UserError(f"{path}: not valid {encoding} ({error}); {_hint(encoding)}") from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{path}: a damaged or incomplete gzip file ({error}); get it again") from None


def _check_start(path, content, encoding):
    """Refuse what the first bytes show to be something else."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") and not _is_utf16(encoding):
        raise UserError(f"{path}, line 1: this is UTF-16; add --encoding utf-16")
    if content.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise UserError(f"{path}: an Excel workbook or another archive; save the table as tab-separated text")
    if content.startswith((b"\xfd7zXZ", b"BZh", b"\x28\xb5\x2f\xfd")):
        raise UserError(f"{path}: compressed, but not by gzip; unpack it")
    if content.startswith(b"PAR1"):
        raise UserError(f"{path}: a Parquet file; name it .parquet")
    if not _is_utf8(encoding):
        with contextlib.suppress(UnicodeDecodeError):
            # a syllable is 3 bytes there, 2 in cp949: no accident
            if re.search("[가-힣]", codecs.getincrementaldecoder("utf-8")().decode(content)):
                raise UserError(f"{path}, line 1: not {encoding} but UTF-8; {_hint(encoding)}")


def problem(text, encoding=None):
    """(reason, message) for text that cannot be used, of a file in `encoding` or (None) from JSON or Parquet."""
    if not is_text(text):
        if encoding:
            return f"not valid {encoding}", _undecodable(text, encoding)
        return "half a character", "half a character (a lone surrogate) in a sentence; save the file again"
    if "\0" in text:
        return "NUL byte", "holds a NUL byte, so it is no text; is the file damaged?"
    if len(text) > LONGEST:
        return "too long", f"{len(text):,} characters, expected at most {LONGEST:,}; are the line ends missing?"
    return None


def is_text(text):
    """Whether a string can be written as UTF-8: none of its bytes was undecodable."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _undecodable(line, encoding):
    byte = next(ord(character) & 0xFF for character in line if "\ud800" <= character <= "\udfff")
    return f"not valid {encoding} (byte 0x{byte:02x}); {_hint(encoding)}"


def _hint(encoding):
    if _is_utf8(encoding) or codecs.lookup(encoding).name == "euc_kr":  # cp949 is euc-kr with all 11,172 syllables
        return "Korean spreadsheets save cp949: try --encoding cp949 (for all files of a call)"
    return "try --encoding utf-8 (for all files of a call)"


def _is_utf8(encoding):
    return codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")


def _is_utf16(encoding):
    return codecs.lookup(encoding).name.startswith(("utf-16", "utf-32"))
