"""What must not get in: strangers, other sites' pages, paths that lead elsewhere, bodies and
pictures without end, files that are no pictures.
"""

import gc
import io
import json
import os
import struct
import sys
import zlib

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from PIL import Image
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocketDisconnect

from lora_trainer.dataset import images
from lora_trainer.dataset.decode_limit import DecodeLimit
from lora_trainer.jobs.service import TrainingService
from lora_trainer.web import api
from lora_trainer.web import guard as doors
from lora_trainer.web.routes import host as host_routes
from tests.support.waiting import stop_all

V1 = "/train-lora/v1"
JSON, FORM = (
    {"content-type": "application/json"},
    {"content-type": "multipart/form-data; boundary=B"},
)


def client_for(service, guard=lambda connection: None, **settings):
    app = FastAPI()
    app.add_api_route("/{anything:path}", lambda anything: "gradio's catch-all")
    api.mount(app, service, guard=guard)
    return TestClient(app, **settings)


@pytest.fixture
def local(host):
    """A service that only this machine can ask."""
    service = TrainingService(host)
    yield service
    service.library.close()


@pytest.fixture
def client(local):
    client = client_for(local)
    client.post(f"{V1}/datasets", json={"name": "x"})
    return client


@pytest.fixture
def reachable(host, tmp_path):
    """A client of a service that other machines can ask, whose roots are the data and LoRA folders
    and a third.
    """
    (tmp_path / "allowed").mkdir()
    service = TrainingService(
        host, allowed_roots=[host.data_dir, host.lora_dir, tmp_path / "allowed"]
    )
    client = client_for(service)
    client.post(f"{V1}/datasets", json={"name": "x"})
    yield client
    service.library.close()


def picture(width=64, height=64, kind="PNG", **settings):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, kind, **settings)
    return buffer.getvalue()


def upload(client, filename, data):
    answer = client.post(
        f"{V1}/datasets/x/images", files=[("files", (filename, data, "image/png"))]
    )
    assert answer.status_code == 200
    return answer.json()


def refusal(answer):
    return answer.json()["error"]["code"]


# --- Who may ask ----------------------------------------------------------------------------------


def nobody(connection):
    raise HTTPException(401, "Log in first.", headers={"WWW-Authenticate": "Basic"})


BELOW = [
    ("GET", "/status"),
    ("HEAD", "/status"),
    ("OPTIONS", "/status"),
    ("PUT", "/status"),
    ("TRACE", "/jobs"),
    ("GET", "/status/"),
    ("GET", "/no/such/route"),
    ("GET", ""),
    ("GET", "/"),
    ("GET", "/datasets/x/thumbnails/a.png"),
    ("GET", "/datasets/x/previews/a%0ab.png"),
    ("GET", "/datasets/x%2f..%2fy"),
    ("DELETE", "/labels/x"),
]


def test_nothing_below_our_path_answers_a_stranger(local):
    client = client_for(local, nobody)
    for method, path in BELOW:
        answer = client.request(method, V1 + path)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Basic", (
            method,
            path,
        )
        assert method == "HEAD" or refusal(answer) == "not_allowed"


def test_a_stranger_is_asked_before_the_body_is_read(local):
    client = client_for(local, nobody)
    for path, body, headers in (
        ("/datasets", b"{", JSON),
        ("/datasets", b"x", {}),
        ("/datasets/x/images", b"no form", FORM),
        ("/datasets", b" " * 21_000_000, JSON),
    ):
        assert client.post(V1 + path, content=body, headers=headers).status_code == 401


@pytest.mark.parametrize("path", ["/events", "/jobs/1/events"])
def test_no_stranger_listens(local, path):
    with pytest.raises(WebSocketDisconnect), client_for(local, nobody).websocket_connect(V1 + path):
        pass


@pytest.mark.parametrize(
    "headers",
    [{"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}],
)
def test_no_page_of_another_site_listens(client, headers):
    with (
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect(f"{V1}/events", headers=headers),
    ):
        pass


# --- From where -----------------------------------------------------------------------------------

OTHER_SITES = [
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": ""},
    {"origin": "null", "host": ""},
    {"origin": "http://["},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "cross-site", "origin": "https://evil.example"},
    {"sec-fetch-site": "same-site", "origin": "http://testserver:8080"},
    {"origin": "http://testserver.evil.example"},
    {"origin": "http://evil.example/testserver"},
]


@pytest.mark.parametrize(
    "method, path",
    [
        ("POST", "/datasets"),
        ("PATCH", "/datasets/x/captions"),
        ("DELETE", "/labels/default"),
        ("PUT", "/labels/default"),
    ],
)
def test_another_site_changes_nothing(client, method, path):
    for headers in OTHER_SITES:
        answer = client.request(method, V1 + path, json={"name": "new"}, headers=headers)
        assert answer.status_code == 403 and refusal(answer) == "not_allowed", headers
    assert [row["name"] for row in client.get(f"{V1}/datasets").json()] == ["x"]


def test_the_page_itself_and_programs_may(client):
    for headers in (
        {},
        {"origin": "http://testserver"},
        {"origin": "http://TESTSERVER:80"},
        {"sec-fetch-site": "same-origin", "origin": "https://behind.proxy"},
        {"origin": "https://my.host", "x-forwarded-host": "my.host"},
        {"origin": "https://my.host", "x-forwarded-host": "my.host:443, inner"},
        {"sec-fetch-site": "none"},
    ):
        assert (
            client.post(f"{V1}/datasets", json={"name": "new"}, headers=headers).status_code == 201
        ), headers


EVIL = "https://evil.example"


@pytest.fixture
def with_cors(local):
    """A client of an app that lets a page of another site read, as the WebUI does with
    --cors-allow-origins.
    """
    client = client_for(local)
    client.app.add_middleware(
        CORSMiddleware, allow_origins=[EVIL], allow_methods=["*"], allow_headers=["*"]
    )
    return client


FORGED = [
    {"origin": EVIL, "x-forwarded-host": "evil.example", "sec-fetch-site": "cross-site"},
    {"origin": EVIL, "x-forwarded-host": "evil.example"},
    {"origin": EVIL, "x-forwarded-host": "testserver, evil.example"},
    {"origin": EVIL, "x-forwarded-host": "evil.example", "host": "192.168.1.5:7860"},
]


@pytest.mark.parametrize("headers", FORGED)
def test_a_page_that_cors_lets_read_cannot_claim_to_come_through_a_proxy(with_cors, headers):
    answer = with_cors.post(f"{V1}/datasets", json={"name": "new"}, headers=headers)
    assert answer.status_code == 403 and refusal(answer) == "not_allowed"
    assert with_cors.get(f"{V1}/datasets").json() == []


@pytest.mark.parametrize("site", ["cross-site", "same-site", "nonsense"])
def test_what_the_browser_says_of_the_site_decides_before_any_other_header(client, site):
    for headers in (
        {"origin": EVIL, "x-forwarded-host": "evil.example"},
        {"origin": "http://testserver"},
        {},
    ):
        answer = client.post(
            f"{V1}/datasets", json={"name": "new"}, headers={**headers, "sec-fetch-site": site}
        )
        assert answer.status_code == 403, headers


def test_a_proxy_that_rewrites_the_host_still_works_where_cors_is_on(with_cors):
    secure = {
        "origin": "https://my.host",
        "host": "127.0.0.1:7860",
        "sec-fetch-site": "same-origin",
    }
    for headers in (secure, {"origin": "http://my.host", "host": "my.host"}):
        assert (
            with_cors.post(f"{V1}/datasets", json={"name": "new"}, headers=headers).status_code
            == 201
        ), headers


def test_only_json_and_uploads_are_taken(client):
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "",
        "text/json",
        "application/octet-stream",
    ):
        answer = client.post(
            f"{V1}/datasets",
            content=b'{"name": "new"}',
            headers={"content-type": kind} if kind else {},
        )
        assert answer.status_code == 415 and refusal(answer) == "wrong_content_type", kind
    assert (
        client.post(
            f"{V1}/datasets",
            content=b'{"name": "new"}',
            headers={"content-type": "application/vnd.api+json; charset=utf-8"},
        ).status_code
        == 201
    )


@pytest.fixture
def standalone(local):
    """The app of the standalone page, gradio and all."""
    gradio = pytest.importorskip("gradio")
    if int(gradio.__version__.split(".")[0]) < 6:
        pytest.skip("the standalone page needs gradio 6")
    from lora_trainer.web.page import create_app

    yield create_app(local)
    gc.collect()


LEFT_OPEN = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # gradio leaves an event loop behind


@LEFT_OPEN
def test_gradios_own_routes_take_nothing_from_another_site(standalone):
    page = TestClient(standalone, base_url="http://127.0.0.1:7870")
    files = {"files": ("a.html", HTML, "text/html")}
    for headers in OTHER_SITES:
        answer = page.post("/gradio_api/upload", files=files, headers=headers)
        assert answer.status_code == (400 if "host" in headers else 403), headers
    assert (
        "another site"
        in page.post("/gradio_api/upload", files=files, headers={"origin": EVIL}).json()["detail"]
    )
    for headers in ({}, {"origin": "http://127.0.0.1:7870"}, {"sec-fetch-site": "same-origin"}):
        assert page.post("/gradio_api/upload", files=files, headers=headers).status_code == 200, (
            headers
        )
    for method, path in (
        ("POST", "/gradio_api/queue/join"),
        ("POST", "/no/such/route"),
        ("DELETE", "/gradio_api/upload"),
    ):
        assert (
            page.request(method, path, headers={"sec-fetch-site": "cross-site"}).status_code == 403
        ), path
    assert (
        page.get("/", headers={"sec-fetch-site": "cross-site"}).status_code == 200
    )  # a link to the page
    assert refusal(page.post(f"{V1}/datasets", json={}, headers={"origin": EVIL})) == "not_allowed"


@LEFT_OPEN
def test_the_standalone_page_answers_to_no_other_name(standalone):
    app = standalone
    for name, status in (
        ("127.0.0.1:7870", 200),
        ("localhost:7870", 200),
        ("evil.example:7870", 400),
        ("testserver", 400),
        ("127.0.0.1.evil.example", 400),
    ):
        assert TestClient(app).get(f"{V1}/status", headers={"host": name}).status_code == status, (
            name
        )


def test_what_is_asked_by_get_changes_nothing(client, host):
    def files():
        return sorted(
            str(path.relative_to(host.data_dir))
            for path in host.data_dir.rglob("*")
            if ".train_lora" not in path.parts and "sqlite3" not in path.name
        )

    upload(client, "a.png", picture())
    before = files()
    for path, operations in client.app.openapi()["paths"].items():
        if path.startswith(V1) and "get" in operations:
            client.get(
                path.replace("{name}", "x").replace("{job_id}", "1").replace("{filename}", "a.png")
            )
    assert files() == before


# --- Where nothing is -----------------------------------------------------------------------------

UNKNOWN = [
    ("GET", "/no/such/route", 404, "not_found", None),
    ("GET", "", 404, "not_found", None),
    ("GET", "/", 404, "not_found", None),
    ("GET", "/status/", 404, "not_found", None),
    ("GET", "/a%0ab", 404, "not_found", None),
    ("PUT", "/status", 405, "wrong_method", "GET"),
    ("OPTIONS", "/datasets", 405, "wrong_method", "GET, POST"),
    ("FOO", "/jobs/1", 405, "wrong_method", "DELETE, GET"),
    ("GET", "/datasets/x/crops/a%0ab", 404, "not_found", None),
]


def test_unknown_routes_and_methods_are_answered_in_our_format(client):
    for method, path, status, code, allowed in UNKNOWN:
        answer = client.request(method, V1 + path)
        assert (
            answer.status_code == status
            and refusal(answer) == code
            and answer.headers.get("allow") == allowed
        ), path


def test_other_routes_of_the_app_are_left_alone(client):
    assert (
        client.get("/train-lora/v2/status").json()
        == "gradio's catch-all"
        == client.get("/train-lora/v1x").json()
    )


@pytest.mark.parametrize("subpath", ["/sd", "/deep/er", "/train-lora", "/train-lora/v1"])
def test_behind_a_proxy_all_answers_alike_whether_it_strips_the_subpath_or_not(local, subpath):
    app = FastAPI()
    app.root_path = subpath  # as gradio does with --subpath
    app.add_api_route("/{anything:path}", lambda anything: "gradio's catch-all")
    api.mount(app, local, guard=lambda connection: None)
    client = TestClient(app)
    for before in ("", subpath):
        assert client.get(f"{before}{V1}/status").json()["host"]["kind"] == "standalone", before
        assert client.post(f"{before}{V1}/datasets", json={"name": "x"}).status_code == 201, before
        for method, path, status, code, allowed in UNKNOWN:
            answer = client.request(method, before + V1 + path)
            assert (answer.status_code, refusal(answer), answer.headers.get("allow")) == (
                status,
                code,
                allowed,
            ), (before, method, path)
        with client.websocket_connect(f"{before}{V1}/events") as socket:
            assert socket.receive_json()["type"]
    assert (
        client.post(
            f"{subpath}{V1}/datasets", json={"name": "y"}, headers={"sec-fetch-site": "cross-site"}
        ).status_code
        == 403
    )
    with (
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect(f"{subpath}{V1}/events", headers={"origin": EVIL}),
    ):
        pass


# --- Paths ----------------------------------------------------------------------------------------

ELSEWHERE = [
    "/etc",
    "/",
    "..",
    "~",
    "~nobody-has-this-name/x",
    r"\\server\share",
    "//server/share/x",
    r"\\?\C:\x",
    r"C:\Windows",
    "a" * 5000,
    "/".join(["a" * 300] * 3),
]


def test_no_folder_elsewhere_becomes_a_data_set(reachable):
    for path in ELSEWHERE:
        answer = reachable.post(f"{V1}/datasets", json={"path": path})
        assert answer.status_code in (403, 422) and refusal(answer) in (
            "forbidden_path",
            "bad_value",
            "bad_request",
        ), path


@pytest.mark.parametrize(
    "name",
    ["train_data_dir", "metadata_path", "output_dir", "logging_dir", "init_lora", "base_model"],
)
def test_no_setting_leads_elsewhere(reachable, name):
    upload(reachable, "a.png", picture())
    for path in (
        "/etc/hosts",
        "../../x",
        "~nobody-has-this-name/x",
        r"\\server\share\x.safetensors",
        "//server/share/x",
        "/tmp/" + "a" * 3500,
        "a" * 300,
    ):
        config = {"train_data_dir": "x", "output_name": "n", name: path}
        planned = reachable.post(f"{V1}/plan", json={"config": config}).json()
        assert planned["errors"][0]["code"] in ("forbidden_path", "bad_value", "no_lora"), path
        assert reachable.post(f"{V1}/jobs", json={"config": config}).status_code in (403, 422), path


@pytest.mark.parametrize(
    "captioner, options",
    [
        ("wd-tagger", {"model": "custom", "folder": "PATH"}),
        ("clip-labels", {"model": "custom", "model_name": "PATH"}),
        ("clip-labels", {"model": "custom", "model_name": "ViT-B-32", "weights": "PATH"}),
        ("coca", {"model": "custom", "model_name": "PATH"}),
    ],
)
def test_no_option_of_a_captioner_leads_elsewhere(reachable, captioner, options):
    for path in (
        "/etc",
        "tests/../../../etc",
        "~nobody-has-this-name/x",
        r"\\server\share",
        "//server/share",
        "a" * 300,
        "./" + "a" * 300,
        "./" + "a/" * 1900,
        "./\ud800",
    ):
        body = json.dumps(
            {"options": {key: value.replace("PATH", path) for key, value in options.items()}}
        )
        answer = reachable.post(
            f"{V1}/captioners/{captioner}/readiness", content=body.encode(), headers=JSON
        )
        assert answer.status_code in (403, 422), answer.text


def test_what_is_inside_the_roots_may_be_used_and_a_link_out_of_them_may_not(
    reachable, host, tmp_path
):
    assert (
        reachable.post(f"{V1}/datasets", json={"path": str(tmp_path / "allowed")}).status_code
        == 201
    )
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "a.png").write_bytes(picture())
    for link in (tmp_path / "allowed" / "link", host.data_dir / "datasets" / "linked"):
        link.symlink_to(tmp_path / "secret")
    assert (
        reachable.post(
            f"{V1}/datasets", json={"path": str(tmp_path / "allowed" / "link")}
        ).status_code
        == 403
    )
    assert reachable.get(f"{V1}/datasets/linked").status_code == 403
    assert [
        row["pictures"] for row in reachable.get(f"{V1}/datasets").json() if row["name"] == "linked"
    ] == [0]


def test_a_folder_that_was_added_by_this_machine_is_refused_once_others_can_ask(
    client, host, tmp_path
):
    (tmp_path / "mine").mkdir()
    assert client.post(f"{V1}/datasets", json={"path": str(tmp_path / "mine")}).status_code == 201
    service = TrainingService(host, allowed_roots=[host.data_dir])
    assert client_for(service).get(f"{V1}/datasets/mine").status_code == 403
    service.library.close()


@pytest.mark.parametrize(
    "filename",
    [
        "..%2f..%2fout.png",
        "%2e%2e/out.png",
        "%2fetc%2fout.png",
        "10_a%2f..%2f..%2fout.png",
        r"..%5c..%5cout.png",
        r"%5c%5cserver%5cshare%5cx.png",
        "a.png%00",
        "a%00.png",
        "link.png",
        "10_link%2fout.png",
        ".train_lora%2fx.png",
        "n" * 300 + ".png",
        "%ff.png",
        "a%0a.png",
        "metadata.csv",
        "con.png",
    ],
)
def test_no_file_name_leads_out_of_a_data_set(client, host, filename):
    folder = host.data_dir / "datasets" / "x"
    for place in (folder.parent, folder.parent.parent):
        (place / "out.png").write_bytes(picture())
    (folder / "link.png").symlink_to(folder.parent / "out.png")
    (folder / "10_link").symlink_to(folder.parent)
    for kind in ("thumbnails", "previews", "crops"):
        answer = client.get(f"{V1}/datasets/x/{kind}/{filename}")
        assert answer.status_code == 404 and refusal(answer) == "not_found"


def test_no_name_of_a_data_set_leads_elsewhere(client):
    for name in (
        "..",
        "%2e%2e",
        "..%2fx",
        "x%2f..",
        ".train_lora",
        "x%00",
        "a" * 300,
        "%5c%5cserver",
        "C:",
    ):
        assert client.get(f"{V1}/datasets/{name}").status_code == 404, name
        assert client.get(f"{V1}/datasets/{name}/captions/export").status_code == 404, name


# --- Under another name: DNS rebinding ------------------------------------------------------------

OWN_NAMES = [
    "localhost",
    "LocalHost:7860",
    "127.0.0.1:7860",
    "127.1.2.3",
    "[::1]:7860",
    "[::1]",
    "192.168.1.5:7860",
    "0.0.0.0:7860",
    "webui.localhost",
    "localhost.",
]
FOREIGN_NAMES = [
    "evil.example:7860",
    "testserver",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "a.trycloudflare.com",
    "7f000001.rebind.example:7860",
    "[::1].evil.example",
    "localhost@evil.example",
    "evil.example, localhost",
    "2130706433",
    "0x7f.1",
    "a" * 300,
    "\u00ffx",
]


def test_which_names_are_this_machines(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "Anna-PC")
    for name in (*OWN_NAMES, "anna-pc:7860", "ANNA-PC", "anna-pc.local", ""):
        assert doors.foreign_name(connection(name)) == "", name
    for name in (*FOREIGN_NAMES, "anna-pc.evil.example"):
        assert doors.foreign_name(connection(name)), name


def connection(host):
    return HTTPConnection({"type": "http", "headers": [(b"host", host.encode("latin-1"))]})


@pytest.fixture
def rebound(host, tmp_path):
    """Clients of a WebUI that listens on this machine only: one under its own name, one whose page
    reached it under another.
    """
    (tmp_path / "allowed").mkdir()
    service = TrainingService(
        host, foreign_roots=[host.data_dir, host.lora_dir, tmp_path / "allowed"]
    )
    own = client_for(service, base_url="http://127.0.0.1:7860")
    own.post(f"{V1}/datasets", json={"name": "x"})
    yield own, TestClient(own.app, base_url="http://evil.example:7860")
    stop_all(service)
    service.library.close()


def test_under_another_name_no_folder_elsewhere_becomes_a_data_set(rebound, tmp_path):
    own, foreign = rebound
    (tmp_path / "mine").mkdir()
    for path in (*ELSEWHERE, str(tmp_path / "mine")):
        answer = foreign.post(f"{V1}/datasets", json={"path": path})
        assert answer.status_code in (403, 422) and refusal(answer) in (
            "forbidden_path",
            "bad_value",
            "bad_request",
        ), path
    message = foreign.post(f"{V1}/datasets", json={"path": str(tmp_path / "mine")}).json()["error"][
        "message"
    ]
    assert "evil.example:7860" in message and "--train-lora-allowed-dirs" in message
    assert (
        foreign.post(f"{V1}/datasets", json={"path": str(tmp_path / "allowed")}).status_code == 201
    )
    assert own.post(f"{V1}/datasets", json={"path": str(tmp_path / "mine")}).status_code == 201


def test_under_another_name_a_folder_added_before_is_not_opened(rebound, tmp_path):
    own, foreign = rebound
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.png").write_bytes(picture())
    assert own.post(f"{V1}/datasets", json={"path": str(tmp_path / "mine")}).status_code == 201
    assert (
        own.get(f"{V1}/datasets/mine").status_code
        == own.get(f"{V1}/datasets/mine/previews/a.png").status_code
        == 200
    )
    for path in (
        "/datasets/mine",
        "/datasets/mine/previews/a.png",
        "/datasets/mine/thumbnails/a.png",
        "/datasets/mine/captions/export",
    ):
        assert foreign.get(V1 + path).status_code == 403, path
    for method, path, body in [
        ("PATCH", "/captions", {"changes": {"a.png": "x"}}),
        ("POST", "/trash", {"filenames": ["a.png"]}),
        ("POST", "/autocaption", {"captioner": "fixed", "options": {"template": "x"}}),
    ]:
        assert foreign.request(method, f"{V1}/datasets/mine{path}", json=body).status_code == 403, (
            path
        )
    assert (tmp_path / "mine" / "a.png").is_file() and not (tmp_path / "mine" / "a.txt").exists()


def test_under_another_name_nothing_is_removed_for_good(rebound):
    own, foreign = rebound
    for ask in (
        lambda client: client.post(f"{V1}/storage/clear", json={"what": "trash"}),
        lambda client: client.delete(f"{V1}/jobs/1"),
    ):
        answer = ask(foreign)
        assert (
            answer.status_code == 403
            and refusal(answer) == "forbidden_path"
            and "nothing is removed for good" in answer.text
        )
        assert ask(own).status_code in (200, 404)


@pytest.mark.parametrize(
    "name",
    [
        "train_data_dir",
        "extra_data_dirs",
        "reg_data_dir",
        "metadata_path",
        "output_dir",
        "logging_dir",
        "init_lora",
    ],
)
def test_under_another_name_no_setting_leads_elsewhere(rebound, tmp_path, name):
    own, foreign = rebound
    upload(own, "a.png", picture())
    (tmp_path / "mine").mkdir()
    for path in (str(tmp_path / "mine"), "/etc/hosts", "../../x"):
        config = {"train_data_dir": "x", "output_name": "n", name: path}
        assert (
            foreign.post(f"{V1}/plan", json={"config": config}).json()["errors"][0]["code"]
            == "forbidden_path"
        ), path
        assert foreign.post(f"{V1}/jobs", json={"config": config}).status_code == 403, path
        assert foreign.post(f"{V1}/settings/export", json={"config": config}).status_code == 403, (
            path
        )
        here = own.post(f"{V1}/plan", json={"config": config}).json()["errors"]
        assert "forbidden_path" not in [error["code"] for error in here], path


def test_under_another_name_a_job_with_folders_elsewhere_is_neither_resumed_nor_repeated(
    rebound, tmp_path, pictures
):
    own, foreign = rebound
    own.post(f"{V1}/queue/hold")
    config = {
        "train_data_dir": str(pictures),
        "output_name": "n",
        "resolution": 64,
        "max_train_steps": 1,
        "preview": False,
    }
    job = own.post(f"{V1}/jobs", json={"config": config}).json()["id"]
    for path, body in (
        ("resume", {}),
        ("duplicate", {}),
        ("resume", {"changes": {"logging_dir": str(tmp_path / "logs")}}),
        ("resume", {"anyway": True}),
    ):
        answer = foreign.post(f"{V1}/jobs/{job}/{path}", json=body)
        assert answer.status_code == 403 and refusal(answer) == "forbidden_path", path
    assert own.post(f"{V1}/jobs/{job}/duplicate", json={}).status_code == 201


def test_under_another_name_no_captioner_reads_elsewhere(rebound, tmp_path):
    own, foreign = rebound
    (tmp_path / "model").mkdir()
    for captioner, options in (
        ("wd-tagger", {"model": "custom", "folder": str(tmp_path / "model")}),
        ("clip-labels", {"model": "custom", "model_name": str(tmp_path / "model")}),
        ("coca", {"model": "custom", "model_name": str(tmp_path / "model")}),
    ):
        answer = foreign.post(f"{V1}/captioners/{captioner}/readiness", json={"options": options})
        assert answer.status_code == 403 and refusal(answer) == "forbidden_path", captioner


def test_under_another_name_all_else_goes_on_as_a_proxy_needs_it(rebound):
    own, foreign = rebound
    assert foreign.post(f"{V1}/datasets", json={"name": "new"}).status_code == 201
    assert upload(foreign, "a.png", picture())["added"] == ["a.png"]
    assert foreign.get(f"{V1}/datasets/x/previews/a.png").status_code == 200
    planned = foreign.post(
        f"{V1}/plan",
        json={
            "config": {
                "train_data_dir": "x",
                "output_name": "n",
                "resolution": 64,
                "max_train_steps": 1,
            }
        },
    ).json()
    assert planned["errors"] == [] and planned["steps"] == 1
    with foreign.websocket_connect(f"{V1}/events"):
        pass


def test_requests_at_the_same_time_are_each_judged_by_their_own_name(rebound, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    own, foreign = rebound
    (tmp_path / "mine").mkdir()
    clients = [own, foreign] * 20
    with ThreadPoolExecutor(8) as pool:
        statuses = list(
            pool.map(
                lambda client: (
                    client.post(
                        f"{V1}/datasets", json={"name": "mine", "path": str(tmp_path / "mine")}
                    ).status_code
                ),
                clients,
            )
        )
    assert statuses == [201, 403] * 20


# --- Uploads --------------------------------------------------------------------------------------


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *chunks):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + b"".join(chunks)
        + chunk(b"IDAT", zlib.compress(b"\0" * min((width + 1) * height, 100_000)))
        + chunk(b"IEND", b"")
    )


def gif(frames, width=64, height=64):
    frame = picture(16, 16, "GIF")
    frame = b"\x21\xf9\x04\0\0\0\0\0" + frame[frame.index(b",\0\0\0\0") : -1]
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", width, height, 0xF7, 0, 0)
        + b"\0" * 768
        + frame * frames
        + b";"
    )


def tiff(width, height):
    data = bytearray(picture(kind="TIFF"))
    for at in range(struct.unpack("<I", data[4:8])[0] + 2, len(data) - 11, 12):
        tag = struct.unpack("<H", data[at : at + 2])[0]
        if tag in (256, 257):
            data[at : at + 12] = struct.pack("<HHII", tag, 4, 1, width if tag == 256 else height)
    return bytes(data)


BOMBS = {
    "wide.png": lambda: png(50_000, 50_000),
    "wide.gif": lambda: gif(1, 60_000, 60_000),
    "wide.tif": lambda: tiff(50_000, 50_000),
    "just.png": lambda: png(12_000, 12_000),
    "profile.png": lambda: png(
        64, 64, chunk(b"iCCP", b"x\0\0" + zlib.compress(b"\0" * 50_000_000))
    ),
    "text.png": lambda: png(
        64, 64, chunk(b"iTXt", b"parameters\0\1\0\0\0" + zlib.compress(b"a" * 50_000_000))
    ),
    "texts.png": lambda: png(
        64,
        64,
        *[
            chunk(b"zTXt", b"%d\0\0" % number + zlib.compress(b"a" * 1_000_000))
            for number in range(80)
        ],
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_pictures_that_swell_are_refused(client, name):
    answer = upload(client, name, BOMBS[name]())
    assert answer["added"] == [] and name in answer["refused"][0]["reason"]


def test_frames_are_not_counted(client, monkeypatch):
    from PIL.GifImagePlugin import GifImageFile

    monkeypatch.setattr(
        GifImageFile,
        "n_frames",
        property(lambda image: pytest.fail("a GIF of a million frames would be read to its end")),
    )
    assert upload(client, "frames.gif", gif(3000))["added"] == ["frames.gif"]
    assert (
        "animated: only the first frame is used"
        in client.get(f"{V1}/datasets/x").json()["pictures"][0]["warnings"]
    )
    answer = client.post(
        f"{V1}/datasets/x/rotate", json={"filenames": ["frames.gif"], "degrees": 90}
    )
    assert answer.status_code == 422 and refusal(answer) == "not_possible"


HTML = b"<html><script>alert(1)</script></html>"


NO_PICTURES = [
    ("page.png", HTML),
    ("drawing.png", b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
    ("archive.png", b"PK\x03\x04" + b"\0" * 100),
    ("photo.png", b"8BPS" + b"\0" * 100),
    ("print.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n"),
    ("empty.png", b""),
    ("drawing.svg", b"<svg/>"),
    ("page.html", HTML),
    ("archive.zip", b"PK"),
    ("weights.safetensors", b"x"),
    ("run.py", b"x"),
    (".hidden.png", picture()),
    ("con.png", picture()),
    ("con .png", picture()),
    ("COM\u00b9.png", picture()),
    ("a:b.png", picture()),
    ("n" * 300 + ".png", picture()),
    ("a?.png", picture()),
    ("big.txt", b"x" * 200_000),
    ("metadata.csv", b"x" * 20_000_001),
]


def test_only_pictures_and_captions_by_content_and_name(client):
    for filename, data in NO_PICTURES:
        answer = upload(client, filename, data)
        assert answer["added"] == [] and answer["refused"][0]["filename"] == filename


def test_an_upload_stays_in_its_folder(client, host):
    for filename in (
        "../../up.png",
        r"..\..\up.png",
        "/etc/up.png",
        r"C:\up.png",
        r"\\server\share\up.png",
    ):
        assert upload(client, filename, picture())["added"] == ["up.png"]
    assert list(host.data_dir.rglob("*.png")) == [host.data_dir / "datasets" / "x" / "up.png"]


def test_a_page_that_is_also_a_picture_is_only_ever_sent_as_a_picture(client):
    upload(client, "both.png", picture() + HTML)
    for kind in ("thumbnails", "previews", "crops"):
        answer = client.get(f"{V1}/datasets/x/{kind}/both.png")
        assert (
            answer.headers["content-type"] == "image/jpeg"
            and answer.content[:2] == b"\xff\xd8"
            and b"<html" not in answer.content
        )
        assert (
            answer.headers["x-content-type-options"] == "nosniff"
            and answer.headers["cross-origin-resource-policy"] == "same-origin"
        )


def test_every_answer_says_that_its_kind_is_not_to_be_guessed(client):
    for path in ("/status", "/datasets/no", "/no/such/route", "/datasets/x/captions/export"):
        assert client.get(V1 + path).headers["x-content-type-options"] == "nosniff"


def test_large_pictures_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    import threading

    monkeypatch.setattr(images, "_decode_limit", DecodeLimit(1000))
    (tmp_path / "a.png").write_bytes(picture())
    inside = []

    def decode():
        with images.opened(tmp_path / "a.png"):
            inside.append(1)

    with images.opened(tmp_path / "a.png"):
        thread = threading.Thread(target=decode)
        thread.start()
        thread.join(0.2)
        assert not inside and images.read_facts(tmp_path / "a.png", thorough=False).width == 64
    thread.join()
    assert inside


@pytest.mark.parametrize("kind", ["thumbnails", "previews", "crops"])
@pytest.mark.parametrize(
    "headers, status",
    [
        ({}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Dest": "image"}, 403),
        (
            {
                "Sec-Fetch-Site": "cross-site",
                "Sec-Fetch-Mode": "navigate",
                "Sec-Fetch-Dest": "iframe",
            },
            403,
        ),
        (
            {
                "Sec-Fetch-Site": "cross-site",
                "Sec-Fetch-Mode": "navigate",
                "Sec-Fetch-Dest": "document",
            },
            200,
        ),
        ({"Origin": "https://evil.example"}, 403),
    ],
)
def test_pictures_are_not_made_for_other_sites(client, kind, headers, status):
    """An `<img>` of any page can ask for them; each costs the decoding of a picture."""
    upload(client, "a.png", picture())
    assert client.get(f"{V1}/datasets/x/{kind}/a.png", headers=headers).status_code == status


def part(name, data, filename=""):
    filename = f'; filename="{filename}"' if filename else ""
    return (
        f'--B\r\nContent-Disposition: form-data; name="{name}"{filename}\r\n\r\n'.encode()
        + data
        + b"\r\n"
    )


@pytest.mark.parametrize(
    "path, body, headers",
    [
        ("/datasets", b" " * 21_000_000, JSON),
        ("/plan", b"[" * 21_000_000, JSON),
        ("/datasets/x/captions/import", part("versions", b"x" * 9_000_000) + b"--B--\r\n", FORM),
    ],
    ids=["json", "deep json", "field"],
)
@pytest.mark.parametrize("told", [True, False], ids=["length", "no length"])
def test_bodies_have_an_end(client, path, body, headers, told):
    def pieces():
        for at in range(0, len(body), 1_000_000):
            yield body[at : at + 1_000_000]

    answer = client.post(V1 + path, content=body if told else pieces(), headers=headers)
    assert answer.status_code == 413 and refusal(answer) == "too_large"


def test_a_body_that_says_it_is_too_large_is_not_read(client):
    def never():
        pytest.fail("it was read")
        yield b""

    for headers, length in (
        (JSON, doors.LARGEST_JSON_BYTES + 1),
        (FORM, doors.LARGEST_FORM_BYTES + 1),
        (JSON, 10**30),
    ):
        answer = client.post(
            f"{V1}/datasets/x/images",
            content=never(),
            headers={**headers, "content-length": str(length)},
        )
        assert answer.status_code == 413


@pytest.mark.parametrize(
    "count, filename", [(doors.MOST_FIELDS + 1, ""), (doors.MOST_FILES + 1, "a.txt"), (100_000, "")]
)
def test_forms_have_so_many_parts(client, count, filename):
    answer = client.post(
        f"{V1}/datasets/x/images",
        content=part("files", b"x", filename) * count + b"--B--\r\n",
        headers=FORM,
    )
    assert (
        answer.status_code == 400
        and refusal(answer) == "bad_request"
        and "Too many" in answer.json()["error"]["message"]
    )


def test_odd_json_is_refused(client):
    for body in (
        b"[" * 100_000,
        b'{"config": ' * 50_000,
        b'{"config": {"lora_rank": ' + b"9" * 5000 + b"}}",
        b"\xff\xfe",
        b'"\\ud800"',
        b"[NaN, Infinity]",
        b"{",
    ):
        answer = client.post(f"{V1}/plan", content=body, headers=JSON)
        assert answer.status_code in (400, 422) and refusal(answer) == "bad_request", body[:20]


def test_half_letters_and_names_that_are_not_utf8_can_be_told(client, host):
    answer = client.post(f"{V1}/plan", content=b'{"config": {"\\ud800": 1}}', headers=JSON)
    assert answer.status_code == 200 and answer.json()["errors"][0]["code"] == "unknown_setting"
    if os.name == "nt" or sys.platform == "darwin":
        return
    for name in (b"datasets/x/\xff.png", b"datasets/x/\xfe.txt", b"../Lora/\xfd.safetensors"):
        (host.data_dir / os.fsdecode(name)).write_bytes(b"no")
    os.mkdir(os.fsencode(host.data_dir) + b"/datasets/\xfc")
    for path in ("/datasets", "/datasets/x", "/loras", "/datasets/x/captions/export"):
        assert client.get(V1 + path).status_code == 200


def test_numbers_that_json_has_not_become_null(client, local, monkeypatch):
    found = [{"loss": float("nan"), "most": [float("inf"), 1.5]}]
    monkeypatch.setattr(host_routes, "list_loras", lambda lora_dir: found)
    assert client.get(f"{V1}/loras").json() == [{"loss": None, "most": [None, 1.5]}]


# --- Tables and edits -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, data",
    [
        ("metadata.csv", b"filename,prompt\n" + b"a.png,b\n" * 200_001),
        ("metadata.jsonl", b"{}\n" * 200_001),
    ],
)
def test_a_table_has_so_many_lines(client, name, data):
    answer = client.post(f"{V1}/datasets/x/captions/import", files={"file": (name, data)})
    assert answer.status_code == 422 and refusal(answer) == "unreadable_table"


def test_a_table_is_a_file_of_limited_size(client, tmp_path):
    upload(client, "a.png", picture())
    (tmp_path / "large.csv").write_bytes(b"filename,prompt\n" + b" " * 20_000_001)
    for path in (tmp_path / "large.csv", tmp_path, *([os.devnull] if os.name != "nt" else [])):
        planned = client.post(
            f"{V1}/plan",
            json={
                "config": {"train_data_dir": "x", "output_name": "n", "metadata_path": str(path)}
            },
        ).json()
        assert planned["errors"][0]["code"] == "unreadable_table"


def test_a_pattern_without_end_is_given_up(client, monkeypatch):
    from lora_trainer.editor import bulk_edits

    monkeypatch.setattr(bulk_edits, "PATTERN_SECONDS", 0.2)
    upload(client, "a.png", picture())
    client.patch(f"{V1}/datasets/x/captions", json={"changes": {"a.png": "a" * 5000 + "!"}})
    answer = client.post(
        f"{V1}/datasets/x/bulk-edit",
        json={"action": "replace", "find": "(a+)+$", "replace": "", "regex": True},
    )
    assert answer.status_code == 422 and "takes too long" in answer.json()["error"]["message"]


# --- What the document tells ----------------------------------------------------------------------


def test_the_document_describes_every_body_and_every_error(client):
    for path, operations in client.app.openapi()["paths"].items():
        for method, operation in operations.items():
            if not path.startswith(V1):
                continue
            assert {"4XX", "5XX"} <= set(operation["responses"]), (method, path)
            for kind, content in operation.get("requestBody", {}).get("content", {}).items():
                assert kind == "multipart/form-data" or content["schema"].get("properties"), (
                    method,
                    path,
                )
