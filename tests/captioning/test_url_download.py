"""Downloads from a plain address on this machine: progress, stopping, going on, and that half a
file is never taken for a whole one.
"""

import http.server
import threading
import urllib.request

import pytest

from lora_trainer.base.errors import Refused, Stopped
from lora_trainer.captioning import url_download
from lora_trainer.captioning.downloads import RemoteFile, fetch, find, readiness_of

CONTENT = bytes(range(256)) * 4000


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT at every path but /missing; `cut` ends an answer early."""

    cut, requests = None, None


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append((self.path, self.headers.get("Range")))
        if self.path == "/missing":
            return self.send_error(404)
        first = int(
            (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-")
        )
        if first >= len(CONTENT):
            return self.send_error(416)
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(CONTENT) - first))
        self.end_headers()
        self.wfile.write(CONTENT[first : self.server.cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(url_download, "CHUNK_BYTES", 1 << 16)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    server = Server(("127.0.0.1", 0), Handler)
    server.requests = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def remote(server, path="/bytes", name="model.bin"):
    return RemoteFile(
        (name,), url=f"http://127.0.0.1:{server.server_address[1]}{path}", size_bytes=len(CONTENT)
    )


def get(file, models, on_progress=lambda message, share: None, should_stop=lambda: False):
    return fetch(file, models, on_progress=on_progress, should_stop=should_stop)


def test_a_file_comes_whole_with_progress_and_only_once(server, tmp_path):
    told = []
    file = remote(server)
    assert (
        readiness_of([file], tmp_path).download_bytes == len(CONTENT)
        and find(file, tmp_path) is None
    )
    path = get(file, tmp_path, on_progress=lambda message, share: told.append((message, share)))
    assert path.read_bytes() == CONTENT and [each.name for each in tmp_path.iterdir()] == [
        "model.bin"
    ]
    assert told[0] == ("Downloading model.bin (1 MB)", 0.0) and told[-1][1] == 1.0
    assert len(told) > 10 and told == sorted(told, key=lambda each: each[1])
    asked = len(server.requests)
    assert (
        get(file, tmp_path) == path
        and len(server.requests) == asked
        and readiness_of([file], tmp_path).ready
    )


def test_stopped_half_way_it_goes_on_where_it_was(server, tmp_path):
    shares = []
    with pytest.raises(Stopped):
        get(
            remote(server),
            tmp_path,
            on_progress=lambda message, share: shares.append(share),
            should_stop=lambda: shares[-1] > 0.4,
        )
    assert find(remote(server), tmp_path) is None and not (tmp_path / "model.bin").exists()
    have = (tmp_path / "model.bin.part").stat().st_size
    assert 0.4 < have / len(CONTENT) < 0.6
    assert get(remote(server), tmp_path).read_bytes() == CONTENT and server.requests[-1] == (
        "/bytes",
        f"bytes={have}-",
    )
    assert not (tmp_path / "model.bin.part").exists()


def test_a_cut_line_leaves_nothing_that_looks_whole(server, tmp_path):
    server.cut = 300_000
    with pytest.raises(
        Refused,
        match=(
            "could not be downloaded.*arrived.*goes on where it broke off.*Put|put model.bin into"
        ),
    ) as caught:
        get(remote(server), tmp_path)
    assert caught.value.code == "no_download" and not (tmp_path / "model.bin").exists()
    server.cut = None
    assert get(remote(server), tmp_path).read_bytes() == CONTENT


def test_a_part_that_is_too_long_is_begun_anew(server, tmp_path):
    (tmp_path / "model.bin.part").write_bytes(b"x" * (len(CONTENT) + 5))
    assert get(remote(server, path="/bytes"), tmp_path).read_bytes() == CONTENT


def test_wrong_content_is_thrown_away(server, tmp_path):
    with pytest.raises(Refused, match="another checksum"):
        get(remote(server, path="/model-01234567.bin"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_the_server_answers_is_said(server, tmp_path):
    with pytest.raises(Refused, match="the server answered 404 Not Found"):
        get(remote(server, path="/missing"), tmp_path)
