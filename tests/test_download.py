"""data.download against a server that behaves as badly as the internet."""

import hashlib
import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from data import download
from data.errors import RunError
from tests.conftest import ROOT

CONTENT = {
    "KorNLI/multinli.train.ko.tsv": "sentence1\tsentence2\tgold_label\n비가 온다.\t날이 궂다.\tentailment\n".encode()
    * 5000,
    "KorSTS/sts-dev.tsv": "하나\t둘\t3\n".encode() * 100,
    "LICENSE": b"CC BY-SA 4.0\n",
}
BIG = "KorNLI/multinli.train.ko.tsv"


def git_blob_id(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT; `faults` is a list of what happens to the next requests for BIG, one each."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults, self.requests, self.at_end = [], [], threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/mirror"

    def handle_error(self, request, client_address):
        pass  # broken pipes are part of the play


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        name = self.path.removeprefix("/mirror/")
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.server.requests.append((name, start))
        fault = self.server.faults.pop(0) if name == BIG and self.server.faults else None
        content = CONTENT.get(name)
        if content is None or isinstance(fault, int):
            return self.send_error(fault or 404)
        if fault == "no ranges":
            start = 0
        if start >= len(content):
            return self.send_error(416)
        if fault == "corrupt":
            content = content[:-1000] + b"X" + content[-999:]
        if fault == "portal":
            content, start = b"<html>please log in</html>", 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if fault != "truncate":  # a server that does not say how long, and ends early
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = start + (len(content) - start) // 2 if fault in ("cut", "truncate", "stall", "slow") else len(content)
        self.wfile.write(content[start:end])
        self.wfile.flush()
        if fault == "stall":
            time.sleep(1.5)
        if fault == "slow":
            self.server.at_end.wait(600)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "BLOB_IDS", {name: git_blob_id(content) for name, content in CONTENT.items()})
    monkeypatch.setattr(download, "WAIT", 0.01)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield server
        server.at_end.set()
        server.shutdown()


def get(server, folder, *more):
    download.main(["--mirror", server.url, "--output_dir", str(folder), *more])


def assert_whole(folder):
    found = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.name != ".lock"
        if path.is_file()
    }
    assert found == CONTENT


def test_blob_ids_are_gits(shared):
    """Of the five files that are at hand unchanged; the licence too."""
    folder = shared / "korean" / "KorNLU"
    at_hand = [name for name in download.BLOB_IDS if (folder / name).is_file()]
    assert len(at_hand) == 6
    for name in at_hand:
        assert download.blob_id(folder / name) == download.BLOB_IDS[name]


def test_fetches_verifies_and_does_not_fetch_again(server, tmp_path, capsys):
    get(server, tmp_path)
    assert_whole(tmp_path)
    assert len(server.requests) == 3
    get(server, tmp_path)
    assert len(server.requests) == 3
    assert capsys.readouterr().out.count("there and right") == 3


@pytest.mark.parametrize(
    "faults",
    [
        ["cut"],
        ["cut", "cut", "cut", "cut", "cut", "cut", "cut"],  # more than TRIES, but each brings something
        ["truncate", "truncate"],
        ["cut", "no ranges"],
        [500, 503, 429, 408],
        ["cut", 500, "cut", 500, 500, 500],
        ["stall", "stall"],
        ["cut", "corrupt"],
        ["truncate", "portal"],
    ],
    ids=str,
)
def test_goes_on_after(faults, server, tmp_path, monkeypatch):
    if "stall" in faults:  # a busy machine may be as silent as the server: that then costs a try
        monkeypatch.setattr(download, "SILENCE", 0.5)
        monkeypatch.setattr(download, "TRIES", 100)
        monkeypatch.setattr(download, "WAIT", 0)
    server.faults = list(faults)
    get(server, tmp_path)
    assert_whole(tmp_path)
    assert not server.faults
    if faults[0] == "cut" and faults[1:2] in ([], ["cut"]):  # what had arrived was not fetched again
        starts = [start for name, start in server.requests if name == BIG]
        assert starts == sorted(set(starts)) and len(starts) == len(faults) + 1


def test_gives_up_with_a_sentence_and_goes_on_at_the_next_call(server, tmp_path, fails):
    argv = ["--mirror", server.url, "--output_dir", tmp_path]
    server.faults = ["cut", *[500] * download.TRIES]
    message = fails(download.main, argv, 1)
    assert BIG in message and "5 times in a row" in message and "--mirror" in message
    half = (tmp_path / f"{BIG}.partial").stat().st_size
    assert 0 < half < len(CONTENT[BIG]) and not (tmp_path / BIG).exists()
    get(server, tmp_path)
    assert_whole(tmp_path)
    assert (BIG, half) in server.requests


@pytest.mark.parametrize(
    "faults, words",
    [
        ([404], "404 Not Found"),
        ([403], "403 Forbidden"),
        (["corrupt", "corrupt"], "sent something else than the published file"),
        (["portal", "portal"], "begin with b'<html>please log in</html>'"),
    ],
)
def test_refuses(faults, words, server, tmp_path, fails):
    server.faults = faults
    message = fails(download.main, ["--mirror", server.url, "--output_dir", tmp_path], 1)
    assert words in message and f"{server.url}/{BIG}" in message
    assert not (tmp_path / BIG).exists() and not (tmp_path / f"{BIG}.partial").exists()


def test_a_damaged_partial_file_is_begun_anew(server, tmp_path):
    (tmp_path / "KorNLI").mkdir()
    (tmp_path / f"{BIG}.partial").write_bytes(b"X" * 1000)
    get(server, tmp_path)
    assert_whole(tmp_path)
    (tmp_path / BIG).rename(tmp_path / f"{BIG}.partial")  # complete, but killed before the rename: 416
    get(server, tmp_path)
    assert_whole(tmp_path)


def test_another_file_of_that_name_is_kept(server, tmp_path, capsys):
    (tmp_path / "LICENSE").write_text("mine")
    get(server, tmp_path)
    assert (tmp_path / "LICENSE").read_bytes() == CONTENT["LICENSE"]
    assert (tmp_path / "LICENSE.previous-1").read_text() == "mine"
    assert "kept as LICENSE.previous-1" in capsys.readouterr().err


def test_proxy_of_the_environment_is_used(server, tmp_path, monkeypatch):
    """The server takes the part of the proxy: it is asked for the whole address."""
    monkeypatch.setenv("http_proxy", server.url.removesuffix("/mirror"))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr(Handler, "do_GET", via_proxy(Handler.do_GET))
    download.main(["--mirror", "http://kornlu.invalid/mirror", "--output_dir", str(tmp_path)])
    assert_whole(tmp_path)


def via_proxy(do_get):
    def handle(self):
        self.path = self.path.removeprefix("http://kornlu.invalid")
        do_get(self)

    return handle


def test_from_a_folder(server, tmp_path, fails):
    source, target = tmp_path / "source", tmp_path / "target"
    for name in (BIG, "LICENSE"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(CONTENT[name])
    argv = ["--from", source, "--output_dir", target]
    message = fails(download.main, argv)
    assert f"--from {source}: lacks KorSTS/sts-dev.tsv" in message
    assert (target / BIG).read_bytes() == CONTENT[BIG]
    (source / "KorSTS").mkdir()
    (source / "KorSTS" / "sts-dev.tsv").write_bytes(CONTENT["KorSTS/sts-dev.tsv"].replace(b"\n", b"\r\n"))
    assert "core.autocrlf=false" in fails(download.main, argv)
    (source / "KorSTS" / "sts-dev.tsv").write_bytes(CONTENT["KorSTS/sts-dev.tsv"])
    download.main(list(map(str, argv)))
    assert_whole(target)
    assert not server.requests


def test_bad_flags(tmp_path, fails):
    assert "no such folder" in fails(download.main, ["--from", tmp_path / "x"])
    for mirror in (tmp_path, "http://a b/", "http://[x", "http://127.0.0.1/한글"):
        assert "not an http" in fails(download.main, ["--mirror", mirror, "--output_dir", tmp_path])


def test_one_at_a_time(server, tmp_path, fails):
    import filelock

    with filelock.FileLock(tmp_path / ".lock"):
        assert "another data.download" in fails(download.main, ["--mirror", server.url, "--output_dir", tmp_path], 1)


def test_no_server(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "WAIT", 0.01)
    with pytest.raises(RunError, match="refused, 5 times in a row; 0 bytes are kept"):
        download.fetch("http://127.0.0.1:9/x", tmp_path / "x", "0" * 40)


def test_killed_in_the_middle_goes_on(server, tmp_path):
    """The real command, killed while a connection hangs; its partial file serves the next one."""
    server.faults = ["slow"]
    command = [sys.executable, "-m", "data.download", "--mirror", server.url, "--output_dir", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    partial = tmp_path / f"{BIG}.partial"
    while process.poll() is None and not (partial.exists() and partial.stat().st_size):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    have = partial.stat().st_size
    assert have > 0
    get(server, tmp_path)
    assert_whole(tmp_path)
    assert (BIG, have) in server.requests


def test_defaults_name_the_command(tmp_path, monkeypatch, fails):
    import evaluate
    import train

    monkeypatch.setattr(download, "FOLDER", Path(tmp_path) / "KorNLU")
    monkeypatch.chdir(tmp_path)
    for script in (train, evaluate):
        argv = ["--model", "mini"]
        message = fails(script.main, argv)
        assert "python -m data.download" in message and message.count("KorNLU") >= 2
