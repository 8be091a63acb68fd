"""Fetch KorNLU (KorNLI and KorSTS, CC BY-SA 4.0) into data/KorNLU, verified.

python -m data.download
python -m data.download --mirror https://mirror.example/KorNLUDatasets     # the same files from elsewhere
python -m data.download --from FOLDER                                      # from a copy on a disk
"""

import argparse
import hashlib
import http.client
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import filelock
from tqdm import tqdm

from data.errors import RunError, UserError, one_sentence_errors
from data.files import naming_path, unused_path

SOURCE = "https://raw.githubusercontent.com/kakaobrain/KorNLUDatasets/0df0fe7d496eb61b092e022e238c2230b29f1cbc"
BLOB_IDS = {  # of git: sha1 of "blob <size>\0" and the content
    "KorNLI/multinli.train.ko.tsv": "94d26a9d0dd045928148ef8691a256bd0e7d45c3",
    "KorNLI/snli_1.0_train.ko.tsv": "c91761e52fca2a7420104589811346986ce94073",
    "KorNLI/xnli.dev.ko.tsv": "21305150d466aa35d42b14e1890b7dcd58084634",
    "KorNLI/xnli.test.ko.tsv": "89a0b11bffa775fafd88178b3980a1fe2d8aee52",
    "KorSTS/sts-dev.tsv": "3686d9394fa63bcfd6b1bc7c70a60b1dfe08d388",
    "KorSTS/sts-test.tsv": "d2a7c958d520ed84402c0042142a60d9a18ee3e4",
    "KorSTS/sts-train.tsv": "91fc16190dd0102a3cad2f0abf83317703438869",
    "LICENSE": "53d7025a6cd1ccdb05a7fd19ae8892fec25d65ec",
}
KORNLI_TRAIN = ("KorNLI/snli_1.0_train.ko.tsv", "KorNLI/multinli.train.ko.tsv")
KORSTS_DEV, KORSTS_TEST = "KorSTS/sts-dev.tsv", "KorSTS/sts-test.tsv"
FOLDER = Path(__file__).parent / "KorNLU"
TRIES = 5  # in a row without a new byte
WAIT = 1  # seconds before the second try, doubled before each after it
SILENCE = 30  # seconds without a byte after which a connection is given up
BLOCK = 1 << 18  # bytes


def default_files(*names, flag):
    """The paths of KorNLU's files `names`, seen from the working directory where they are below it.

    Raises:
        UserError: one is missing; the sentence names the command that fetches it, and `flag`, which names others.
    """
    here = FOLDER.is_relative_to(Path.cwd())
    folder = FOLDER.relative_to(Path.cwd()) if here else FOLDER
    for name in names:
        if not (folder / name).is_file():
            raise UserError(
                f"{folder / name}, the default of {flag}, is not there; get KorNLU with `python -m data.download`"
                f"{'' if here else f' in {FOLDER.parent.parent}'}, or name files of your own with {flag}"
            )
    return [str(folder / name) for name in names]


def blob_id(path):
    """Git's id of a file's content, hexadecimal."""
    with Path(path).open("rb") as file:
        header = f"blob {os.fstat(file.fileno()).st_size}\0".encode()
        return hashlib.file_digest(file, lambda: hashlib.sha1(header, usedforsecurity=False)).hexdigest()


def fetch(url, partial, expected):
    """Download `url` to `partial`, whose blob id must become `expected`.

    A later call goes on from what has arrived. Proxies are those of the environment variables http_proxy, https_proxy,
    no_proxy.

    Raises:
        RunError: the server refuses, stops answering, or sends something else.
    """
    for _ in range(2):
        _receive(url, partial)
        if (found := blob_id(partial)) == expected:
            return
        size = partial.stat().st_size
        with partial.open("rb") as file:
            start = file.read(40)
        partial.unlink()  # damaged, or begun with another version: once more from the start
    raise RunError(
        f"{url}: sent something else than the published file ({size:,} bytes that begin with {start!r}, blob id "
        f"{found}, expected {expected}); is a proxy in the way? Try --mirror URL or --from FOLDER"
    )


def _receive(url, partial):
    """The whole of `url` in `partial`, over as many connections as it takes."""
    most = partial.stat().st_size if partial.exists() else 0
    failures = 0
    while True:
        try:
            if _connect(url, partial):
                return
            continue
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise RunError(f"{url}: {error.code} {error.reason}; try --mirror URL or --from FOLDER") from None
            reason = f"{error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.filename:  # the disk, not the network
                raise
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        size = partial.stat().st_size if partial.exists() else 0
        failures = 1 if size > most else failures + 1
        most = max(most, size)
        if failures == TRIES:
            raise RunError(
                f"{url}: {reason}, {TRIES} times in a row; {size:,} bytes are kept, the same command goes on from "
                "there; behind a wall try --mirror URL or --from FOLDER"
            )
        time.sleep(WAIT * 2 ** (failures - 1))


def _connect(url, partial):
    """One connection: append to `partial` what is missing, or begin anew where the server cannot go on.

    Returns:
        Whether the file is complete. A server that does not say how long the file is leaves that open; asked for
        the rest of a complete file, it has none.

    Raises:
        OSError, http.client.HTTPException: the connection failed, or ended early.
    """
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"User-Agent": "KoSimCSE", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        # an opener of its own reads the proxies of the environment anew
        request = urllib.request.Request(url, headers=headers)
        response = urllib.request.build_opener().open(request, timeout=SILENCE)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is missing, or the file is of another size: the blob id tells
            return True
        raise
    with response:
        goes_on = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        start = have if goes_on else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else None
        bar = tqdm(total=total, initial=start, desc=partial.stem, unit="B", unit_scale=True, disable=None)
        with bar, partial.open("ab" if goes_on else "wb") as file:
            while block := response.read1(BLOCK):
                with naming_path(partial):
                    file.write(block)
                    file.flush()
                bar.update(len(block))
        size = partial.stat().st_size
    if total is not None and size < total:
        raise http.client.HTTPException(f"the connection ended after {size:,} of {total:,} bytes")
    return total is not None or size == have


def copy(source, partial, expected):
    """Copy a file of the KorNLU repository to `partial`; its blob id is to be `expected`.

    Raises:
        UserError: it is not the published one.
    """
    if (found := blob_id(source)) != expected:
        changed = b"\r\n" in source.read_bytes()
        advice = "; git changed its line ends: clone it with core.autocrlf=false" if changed else ""
        raise UserError(f"{source}: not the published file (blob id {found}, expected {expected}){advice}")
    shutil.copyfile(source, partial)


def _put(partial, path):
    """Rename the complete file into place; something else of that name is kept beside it."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    if path.exists():
        aside = unused_path(path.parent, f"{path.name}.previous-{{}}")
        path.rename(aside)
        print(f"{path} was not the published file; it is kept as {aside.name}", file=sys.stderr)
    os.replace(partial, path)


def parse_flags(argv):
    parser = argparse.ArgumentParser(prog="python -m data.download", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--output_dir", type=Path, default=FOLDER, help="where to (default: data/KorNLU, where the scripts look)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--mirror", default=SOURCE, metavar="URL", help="a web folder with KorNLI/ and KorSTS/")
    where.add_argument("--from", dest="source", type=Path, metavar="FOLDER", help="a folder with KorNLI/ and KorSTS/")
    return parser.parse_args(argv)


@one_sentence_errors
def main(argv=None):
    args = parse_flags(argv)
    # no blanks, and brackets around an IPv6 address alone: else urllib raises what is no OSError, or tries for long
    if not args.mirror.isascii() or not re.fullmatch(r"https?://(\[[0-9a-f:]+\])?[^\s\[\]]*", args.mirror):
        raise UserError(f"--mirror {args.mirror}: not an http:// or https:// address; a folder is named with --from")
    if args.source and not args.source.is_dir():
        raise UserError(f"--from {args.source}: no such folder")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(args.output_dir / ".lock", timeout=0):
            download(args.output_dir, args.mirror.rstrip("/"), args.source)
    except filelock.Timeout:
        raise RunError(f"{args.output_dir}: another data.download is at work there; wait for it") from None


def download(folder, mirror, source=None):
    """Bring every file of BLOB_IDS that is not there and right into `folder`, from `source` or else `mirror`."""
    missing = []
    for name, expected in BLOB_IDS.items():
        path = folder / name
        if path.is_file() and blob_id(path) == expected:
            print(f"{path}: there and right")
            continue
        if source is not None and not (source / name).is_file():
            missing.append(name)
            continue
        partial = path.with_name(path.name + ".partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        if source is None:
            fetch(f"{mirror}/{name}", partial, expected)
        else:
            copy(source / name, partial, expected)
        _put(partial, path)
        print(f"{path}: {path.stat().st_size:,} bytes, verified", flush=True)
    if missing:
        raise UserError(f"--from {source}: lacks {', '.join(missing)}; the other files are in {folder}")


if __name__ == "__main__":
    main()
