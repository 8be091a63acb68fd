"""Models by hub id, against a small hub that the test serves on 127.0.0.1."""

import hashlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
import torch

import evaluate
from data.errors import RunError, UserError
from data.hub import ANSWER_SECONDS, fetch_folder
from data.kobert_tokenizer import KoBERTTokenizer
from model.checkpoint import load_encoder
from tests.conftest import SAMPLE

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tiny_bert, monkeypatch):
    """Serves `tiny_bert` as someone/tiny with the hub's protocol; returns the list of files that were fetched."""
    files = {file.name: file.read_bytes() for file in tiny_bert.iterdir()} | {"flax_model.msgpack": b"not wanted"}
    fetched = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.split("?")[0].removeprefix("/api/models")
            name = path.rsplit("/", 1)[-1]
            if path.startswith("/someone/gated") and "/resolve/" in path:
                self.answer(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Ask for access"})
            elif not path.startswith(("/someone/tiny", "/someone/gated")):
                self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
            elif "/resolve/" in path:
                if self.command == "GET":
                    fetched.append(name)
                etag = f'"{hashlib.sha1(files[name]).hexdigest()}"'
                self.answer(200, files[name], {"ETag": etag, "X-Repo-Commit": COMMIT})
            elif "/tree/" in path:
                entries = [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in files.items()
                ]
                self.answer(200, json.dumps(entries).encode())
            else:
                siblings = [{"rfilename": name} for name in files]
                info = {"id": "someone/tiny", "modelId": "someone/tiny", "sha": COMMIT, "siblings": siblings}
                self.answer(200, json.dumps(info).encode())

        do_HEAD = do_GET

        def answer(self, status, body, headers=()):
            self.send_response(status)
            for key, value in dict(headers, **{"Content-Length": len(body)}).items():
                self.send_header(key, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    monkeypatch.setattr("data.hub.ANSWER_SECONDS", 120)  # this hub's machine is busy with the tests
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
    )
    yield fetched
    server.shutdown()


def test_model_and_tokenizer_by_id(hub, tiny_bert, sample_sentences):
    encoder = load_encoder("someone/tiny")
    assert isinstance(encoder.tokenizer, KoBERTTokenizer)
    expected = load_encoder(tiny_bert).encode(sample_sentences[:5])
    assert torch.equal(encoder.encode(sample_sentences[:5]), expected)
    assert "flax_model.msgpack" not in hub


def test_weights_are_fetched_when_all_else_is_right(hub):
    with pytest.raises(UserError, match="--max_len 600"):
        load_encoder("someone/tiny", max_len=600)
    assert "config.json" in hub and "model.safetensors" not in hub


def test_tokenizer_alone_fetches_no_weights(hub, sample_sentences):
    assert KoBERTTokenizer.from_pretrained("someone/tiny")(sample_sentences[0])["input_ids"][0] == 2
    assert "spiece.model" in hub and "model.safetensors" not in hub


def test_a_fetched_model_needs_no_hub_again(hub, monkeypatch):
    folder = fetch_folder("someone/tiny")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert fetch_folder("someone/tiny") == folder


def test_unknown_model(hub):
    with pytest.raises(UserError, match="someone/other: no such folder, and no such public model"):
        fetch_folder("someone/other")


def test_gated_model(hub):
    with pytest.raises(RunError, match="someone/gated: .* hands this model out only to .*`hf auth login`"):
        fetch_folder("someone/gated")


def test_cached_tokenizer_is_no_model(hub, monkeypatch):
    folder = fetch_folder("someone/tiny", weights=False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert fetch_folder("someone/tiny", weights=False) == folder
    with pytest.raises(RunError, match="cannot be reached"):
        fetch_folder("someone/tiny")


def test_unreachable_hub():
    with pytest.raises(RunError, match="cannot be reached .*`hf download skt/kobert-base-v1 --local-dir FOLDER`"):
        fetch_folder("skt/kobert-base-v1")


def test_what_is_no_hub_id():
    for name in ("./no/such/folder", "./mini", "missing.pt", "missing.model", "a/b/c"):
        with pytest.raises(UserError, match="no such file or folder"):
            fetch_folder(name)


def test_silent_hub_is_given_up_within_seconds(fails, monkeypatch):
    """A server that accepts and never answers: the worst kind of firewall."""
    waits = []
    model_info = huggingface_hub.HfApi.model_info

    def noted(self, name, timeout=None):
        waits.append(timeout)
        return model_info(self, name, timeout=timeout)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", noted)
    with socket.create_server(("127.0.0.1", 0)) as server:  # the system accepts; nobody reads
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        argv = ["--model", "skt/kobert-base-v1", "--test_data", SAMPLE / "test_sts.tsv"]
        assert "cannot be reached" in fails(evaluate.main, argv, 1)
        server.settimeout(60)
        connection, _ = server.accept()
        with connection:
            connection.settimeout(60)
            while connection.recv(4096):  # to the end: it is the client who hung up
                pass
    assert waits == [ANSWER_SECONDS]
