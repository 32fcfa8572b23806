"""Fetching checkpoints: the real hub client against a small hub on this machine."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from srpo.errors import InputError
from srpo.runtime.hub import FetchError, fetch, verify

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "openvla"}',
    "model-00001-of-00002.safetensors": b"first" * 1000,
    "model-00002-of-00002.safetensors": b"second" * 1000,
    "modeling_prismatic.py": b"raise SystemExit",
    "pytorch_model.bin": b"a pickle",
    "folder/other.json": b"{}",
}


def blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def hub() -> Iterator[SimpleNamespace]:
    """A hub with one repository. `sent`: what it sends as a file; `asked`: the files that it sent."""
    state = SimpleNamespace(sent=dict(FILES), asked=[])

    class Handler(BaseHTTPRequestHandler):
        def reply(self, body: bytes, code: int = 200, **headers: str) -> None:
            self.send_response(code)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            if path in ("/api/models/lab/policy", f"/api/models/lab/policy/revision/{COMMIT}"):
                siblings = [
                    {"rfilename": name, "size": len(content), "blobId": blob(content)}
                    | (
                        {
                            "lfs": {
                                "sha256": hashlib.sha256(content).hexdigest(),
                                "size": len(content),
                                "pointerSize": 1,
                            }
                        }
                        if name.endswith(".safetensors")
                        else {}
                    )
                    for name, content in FILES.items()
                ]
                body = json.dumps(
                    {"id": "lab/policy", "modelId": "lab/policy", "sha": COMMIT, "siblings": siblings}
                )
                self.reply(body.encode(), **{"Content-Type": "application/json"})
            elif path.startswith(f"/lab/policy/resolve/{COMMIT}/"):
                name = path.split(COMMIT + "/")[1]
                if self.command == "GET":
                    state.asked.append(name)
                etag = hashlib.sha256(FILES[name]).hexdigest()
                self.reply(state.sent[name], ETag=f'"{etag}"', **{"X-Repo-Commit": COMMIT})
            else:
                self.reply(b"{}", 404, **{"X-Error-Code": "RepoNotFound"})

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.endpoint = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    server.server_close()


def test_data_files_are_fetched_and_recorded(hub: SimpleNamespace, tmp_path: Path) -> None:
    out = tmp_path / "policy"
    fetch("lab/policy", COMMIT, out, hub.endpoint)
    wanted = {"config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
    assert {name for name in wanted if (out / name).read_bytes() == FILES[name]} == wanted
    assert {path.name for path in out.iterdir()} == wanted | {"fetched.json"}
    assert json.loads((out / "fetched.json").read_text())["revision"] == COMMIT
    verify(out)
    (out / "config.json").write_bytes(b'{"model_type": "opanvla"}')
    with pytest.raises(FetchError, match=r"changed since it was fetched: config\.json;"):
        verify(out)


def test_what_is_there_already_is_said_before_anything_is_fetched(
    hub: SimpleNamespace, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="is there already; delete it"):
        fetch("lab/policy", COMMIT, tmp_path, hub.endpoint)
    assert not hub.asked


def test_an_interrupted_fetch_goes_on(hub: SimpleNamespace, tmp_path: Path) -> None:
    """A file that arrives damaged (with its right size) is refused; the next try asks for no other again."""
    bad = "model-00002-of-00002.safetensors"
    hub.sent[bad] = b"x" + FILES[bad][1:]
    with pytest.raises(FetchError, match=f"{bad} arrived damaged"):
        fetch("lab/policy", COMMIT, tmp_path / "policy", hub.endpoint)
    assert not (tmp_path / "policy").exists()
    hub.sent[bad] = FILES[bad]
    hub.asked.clear()
    fetch("lab/policy", COMMIT, tmp_path / "policy", hub.endpoint)
    assert hub.asked == [bad]
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_a_small_file_is_checked_too(hub: SimpleNamespace, tmp_path: Path) -> None:
    hub.sent["config.json"] = b'{"model_type": "opanvla"}'
    with pytest.raises(FetchError, match=r"config\.json arrived damaged"):
        fetch("lab/policy", COMMIT, tmp_path / "policy", hub.endpoint)


def test_the_newest_revision_is_named(
    hub: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch("lab/policy", None, tmp_path / "policy", hub.endpoint)
    assert f"newest is {COMMIT}; set it as the revision" in capsys.readouterr().out


def test_what_is_not_there_is_said(hub: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="lab/other at its newest revision"):
        fetch("lab/other", None, tmp_path / "policy", hub.endpoint)
    with pytest.raises(FetchError, match="lab/policy"):
        fetch("lab/policy", None, tmp_path / "policy", "http://127.0.0.1:9")
    with pytest.raises(FetchError, match="was not fetched"):
        verify(tmp_path)
