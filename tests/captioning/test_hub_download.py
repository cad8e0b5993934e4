"""Downloads by huggingface_hub from a server on this machine that speaks as the hub does."""

import hashlib
import http.server
import threading
import time

import pytest

from lora_trainer.base.errors import Refused, Stopped
from lora_trainer.captioning import hub_download
from lora_trainer.captioning.downloads import RemoteFile, fetch, find, readiness_of

CONTENT = bytes(range(256)) * 100_000
NAME = "model.bin"


class Hub(http.server.ThreadingHTTPServer):
    """Has me/mine with model.bin, whose bytes lie at another address, as the hub's large files do.

    `most_bytes` are sent of it, then nothing more until `goes_on` is set.
    """

    daemon_threads = True
    checksum, most_bytes = hashlib.sha256(CONTENT).hexdigest(), None

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.goes_on = [], threading.Event()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def other_address(self):
        """The same server by another name: newer clients follow redirections within one host."""
        return f"http://localhost:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(with_content=False)

    def do_GET(self):
        self.answer(with_content=True)

    def answer(self, with_content):
        hub = self.server
        hub.requests.append((self.command, self.path, self.headers.get("Range")))
        if self.path == "/bytes":
            return self.send_content(with_content)
        if self.path != f"/me/mine/resolve/main/{NAME}":
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(302)
        self.send_header("Location", f"{hub.other_address}/bytes")
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("ETag", '"0"')
        self.send_header("X-Linked-ETag", f'"{hub.checksum}"')
        self.send_header("X-Linked-Size", str(len(CONTENT)))
        self.send_header("Content-Length", "0")
        return self.end_headers()

    def send_content(self, with_content):
        hub = self.server
        first = int((self.headers.get("Range") or "bytes=0-")[len("bytes=") :].partition("-")[0])
        self.send_response(206 if first else 200)
        if first:
            last = len(CONTENT) - 1
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(CONTENT) - first))
        self.end_headers()
        if not with_content:
            return
        try:
            if hub.most_bytes is not None:
                self.wfile.write(CONTENT[first : hub.most_bytes])
                hub.goes_on.wait(30)
                first = max(first, hub.most_bytes)
            self.wfile.write(CONTENT[first:])
        except OSError:  # the other side has stopped
            self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    hub = Hub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.setenv("NO_PROXY", "*")
    yield hub
    hub.goes_on.set()
    hub.shutdown()
    hub.server_close()


@pytest.fixture
def models(tmp_path):
    return tmp_path / "models"


def remote(*names, repository="me/mine"):
    return RemoteFile(names or (NAME,), repository, size_bytes=len(CONTENT))


def get(file, models, on_progress=lambda message, share: None, should_stop=lambda: False):
    return fetch(file, models, on_progress=on_progress, should_stop=should_stop)


def test_a_file_comes_whole_with_progress_and_only_once(hub, models):
    reports = []
    file = remote()
    assert find(file, models) is None
    path = get(file, models, on_progress=lambda message, share: reports.append((message, share)))
    assert path == models / "me--mine" / NAME and path.read_bytes() == CONTENT
    assert [each.name for each in path.parent.iterdir()] == [NAME]
    assert reports[-1] == ("Downloading model.bin (26 MB)", 1.0)
    assert reports == sorted(reports, key=lambda each: each[1])
    asked = len(hub.requests)
    assert get(file, models) == path and len(hub.requests) == asked
    assert readiness_of([file], models).ready


def test_stopped_half_way_it_goes_on_where_it_was(hub, models):
    """It stops although the server is silent, and names no half file."""
    hub.most_bytes = 22_000_000
    shares, begun = [], []

    def should_stop():
        if shares and shares[-1] > 0.3:
            begun.append(time.monotonic())
        return bool(begun)

    with pytest.raises(Stopped):
        get(
            remote(),
            models,
            on_progress=lambda message, share: shares.append(share),
            should_stop=should_stop,
        )
    assert time.monotonic() - begun[0] < 5
    assert find(remote(), models) is None and not (models / "me--mine" / NAME).exists()
    hub.goes_on.set()
    assert get(remote(), models).read_bytes() == CONTENT
    ranges = [asked for command, path, asked in hub.requests if command == "GET"]
    assert ranges[0] is None and int(ranges[-1].removeprefix("bytes=").partition("-")[0]) > 0


def test_wrong_content_is_thrown_away(hub, models):
    hub.checksum = "0" * 64
    with pytest.raises(Refused, match="another checksum") as caught:
        get(remote(), models)
    assert caught.value.code == "no_download" and find(remote(), models) is None
    del hub.checksum
    assert get(remote(), models).read_bytes() == CONTENT


def test_of_several_names_the_first_that_is_there_counts(hub, models):
    assert get(remote("a.bin", NAME), models) == models / "me--mine" / NAME
    with pytest.raises(Refused, match="answered 404"):
        get(remote("c.bin"), models)


def test_without_a_network_it_is_said_what_to_do(hub, models, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Refused, match="downloaded: .*refused.*; or put model.bin into .*"):
        get(remote(), models)


def test_what_an_earlier_version_began_is_removed(hub, models):
    begun = models / "me--mine" / f"{NAME}.part"
    begun.parent.mkdir(parents=True)
    begun.write_bytes(b"x")
    get(remote(), models)
    assert not begun.exists()


def test_a_process_that_dies_is_said(hub, models, monkeypatch, tmp_path):
    (tmp_path / "dies.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(hub_download, "PROGRAM", tmp_path / "dies.py")
    with pytest.raises(Refused, match="ended without a result"):
        get(remote(), models)
