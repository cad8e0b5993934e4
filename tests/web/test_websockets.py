"""WebSockets: what is told, to whom, and that listeners who do not listen are in nobody's way."""

import base64
import contextlib
import http.client
import json
import socket
import threading
import time

import pytest
from fastapi import FastAPI, HTTPException, WebSocket
from fastapi.testclient import TestClient
from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocketDisconnect

from lora_trainer.web import api, websockets
from tests.support.waiting import LONG, until

V1 = "/train-lora/v1"
OVER = ("finished", "stopped", "failed", "interrupted")


def read_until(listener, done):
    """Read messages until one is the last that a test waits for; returns all."""
    messages = []
    while not (messages and done(messages[-1])):
        messages.append(json.loads(listener.receive_text()))
    return messages


def of_kind(messages, kind):
    return [message for message in messages if message["type"] == kind]


def has_ended(job_id):
    return lambda message: (
        message["type"] == "jobs"
        and any(job["id"] == job_id and job["state"] in OVER for job in message["jobs"])
    )


def rows_of(messages):
    return [row["step"] for message in of_kind(messages, "metrics") for row in message["rows"]]


def test_everything_as_it_happens(client, service, settings):
    with client.websocket_connect(f"{V1}/events") as listener:
        first = read_until(listener, lambda message: message["type"] == "jobs")
        model = service.status()["model"]
        assert first == [
            {
                "type": "status",
                "queue_held": False,
                "queued": 0,
                "current_job": None,
                "model": model,
            },
            {"type": "jobs", "jobs": []},
        ]
        job_id = service.start(settings)
        messages = read_until(listener, has_ended(job_id))
        assert {message["id"] for message in of_kind(messages, "metrics")} == {job_id} and rows_of(
            messages
        ) == [1, 2, 3, 4, 5, 6]
        assert messages[-1]["jobs"] == service.jobs()
        service.hold_queue()
        (status,) = read_until(listener, lambda message: True)
        assert status == {
            "type": "status",
            "queue_held": True,
            "queued": 0,
            "current_job": None,
            "model": service.status()["model"],
        }
        service.start({**settings, "output_name": "waits"})
        messages = read_until(listener, lambda message: message["type"] == "jobs")
        assert [(job["name"], job["position"]) for job in messages[-1]["jobs"]] == [
            ("waits", 0),
            ("mine", None),
        ] and messages[0]["queued"] == 1


def test_the_running_job_from_where_one_came_in(client, service, settings):
    job_id = service.start({**settings, **LONG})
    until(lambda: service.job(job_id)["step"] >= 5)
    with client.websocket_connect(f"{V1}/events") as listener:
        messages = read_until(listener, lambda message: message["type"] == "metrics")
        assert messages[0] == {
            "type": "status",
            "queue_held": False,
            "queued": 0,
            "current_job": job_id,
            "model": service.status()["model"],
        }
        assert messages[1]["job"]["id"] == job_id
        steps = rows_of(messages)
        assert steps[0] > 5 and steps == list(range(steps[0], steps[-1] + 1))
        service.pause(job_id)
        messages = read_until(
            listener,
            lambda message: message["type"] == "job" and message["job"]["state"] == "paused",
        )
        assert messages[-1]["job"]["waiting_for"] == "user" and all(
            message["id"] == job_id for message in of_kind(messages, "metrics")
        )


def test_one_job_with_all_its_rows(client, service, settings):
    job_id = service.start(settings)
    service.wait(job_id, 60)
    for since, steps in (("", [1, 2, 3, 4, 5, 6]), ("?since=4", [5, 6])):
        with client.websocket_connect(f"{V1}/jobs/{job_id}/events{since}") as listener:
            messages = read_until(listener, lambda message: message["type"] == "metrics")
            assert (
                messages[0] == {"type": "job", "job": service.job(job_id)}
                and rows_of(messages) == steps
            )


def test_a_job_that_goes_on_tells_its_steps_anew(client, service, settings):
    job_id = service.start({**settings, **LONG})
    until(lambda: service.job(job_id)["step"] >= 3)
    service.stop(job_id)
    step = service.wait(job_id, 60)["step"]
    with client.websocket_connect(f"{V1}/jobs/{job_id}/events") as listener:
        assert (
            rows_of(read_until(listener, lambda message: message["type"] == "metrics"))[-1] == step
        )
        service.resume(job_id, {"max_train_steps": step + 4})
        messages = read_until(
            listener, lambda message: message["type"] == "job" and message["job"]["state"] in OVER
        )
        rest = (
            []
            if rows_of(messages)[-1:] == [step + 4]
            else read_until(listener, lambda message: rows_of([message])[-1:] == [step + 4])
        )
        assert rows_of(messages + rest) == list(range(step + 1, step + 5))
        service.delete(job_id)
        with pytest.raises(WebSocketDisconnect):
            read_until(listener, lambda message: False)


def test_at_most_five_times_a_second(client, service, settings):
    job_id = service.start({**settings, **LONG})
    until(lambda: service.job(job_id)["step"] >= 5)
    with client.websocket_connect(f"{V1}/jobs/{job_id}/events") as listener:
        start = time.monotonic()
        threading.Timer(1.5, service.stop, [job_id]).start()
        messages = read_until(
            listener, lambda message: message["type"] == "job" and message["job"]["state"] in OVER
        )
        seconds = time.monotonic() - start
    assert 2 <= len(of_kind(messages, "job")) <= 5 * seconds + 4  # however many steps that were


def test_two_listeners_are_told_the_same(client, service, settings):
    with (
        client.websocket_connect(f"{V1}/events") as one,
        client.websocket_connect(f"{V1}/events") as other,
    ):
        for listener in (one, other):
            read_until(listener, lambda message: message["type"] == "jobs")
        job_id = service.start(settings)
        told = [read_until(listener, has_ended(job_id)) for listener in (one, other)]
    assert [rows_of(messages) for messages in told] == [[1, 2, 3, 4, 5, 6]] * 2
    assert of_kind(told[0], "jobs")[-1] == of_kind(told[1], "jobs")[-1]


def test_what_json_does_not_have_is_told_all_the_same(client, service, settings):
    job_id = service.store.add("odd", settings)
    service.store.update(
        job_id, state="stopped", progress={"loss": float("nan"), "remarks": ["caf\udce9.png"]}
    )
    with client.websocket_connect(f"{V1}/events") as listener:
        (job,) = read_until(listener, lambda message: message["type"] == "jobs")[-1]["jobs"]
        assert (job["loss"], job["remarks"]) == (None, ["caf?.png"])
    with client.websocket_connect(f"{V1}/jobs/{job_id}/events") as listener:
        assert read_until(listener, lambda message: message["type"] == "job")[-1]["job"] == job


# --- Who may listen -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/events", "/jobs/1/events"])
@pytest.mark.parametrize(
    "headers, welcome",
    [
        ({}, True),
        ({"origin": "http://testserver"}, True),
        ({"origin": "https://evil.example"}, False),
        ({"origin": "null"}, False),
        ({"origin": "http://testserver.evil.example"}, False),
        ({"origin": "https://evil.example", "sec-fetch-site": "cross-site"}, False),
    ],
)
def test_pages_of_other_sites_hear_nothing(client, service, path, headers, welcome):
    service.store.update(service.store.add("x", {}), state="stopped")
    if welcome:
        with client.websocket_connect(V1 + path, headers=headers) as listener:
            assert json.loads(listener.receive_text())["type"] in ("status", "job")
    else:
        with (
            pytest.raises(WebSocketDisconnect) as refused,
            client.websocket_connect(V1 + path, headers=headers),
        ):
            pass
        assert refused.value.code == 1008


@pytest.fixture
def guarded(service):
    """An app as of a WebUI with --api-auth and --gradio-auth, with a catch-all as gradio's."""

    def guard(connection):
        if (
            connection.cookies.get("access-token") != "logged in"
            and connection.headers.get("authorization")
            != "Basic " + base64.b64encode(b"me:pw").decode()
        ):
            raise HTTPException(401, "Log in first.")

    app = FastAPI()
    app.add_api_route("/{path:path}", lambda path: PlainTextResponse("gradio's"))
    app.add_api_websocket_route("/{path:path}", _gradio)
    api.mount(app, service, guard=guard)
    return app


async def _gradio(websocket: WebSocket, path: str):
    await websocket.accept()
    await websocket.send_text('"gradio\'s"')
    await websocket.close()


@pytest.mark.parametrize("path", ["/events", "/jobs/1/events"])
def test_the_guard_is_asked_and_gradio_does_not_answer_for_us(guarded, service, path):
    service.store.update(service.store.add("x", {}), state="stopped")
    client = TestClient(guarded)
    for headers in (
        {},
        {"cookie": "access-token=wrong"},
        {"authorization": "Basic " + base64.b64encode(b"me:no").decode()},
    ):
        with (
            pytest.raises(WebSocketDisconnect) as refused,
            client.websocket_connect(V1 + path, headers=headers),
        ):
            pass
        assert refused.value.code == 1008
    for headers in (
        {"cookie": "access-token=logged in"},
        {"authorization": "Basic " + base64.b64encode(b"me:pw").decode()},
    ):
        with client.websocket_connect(V1 + path, headers=headers) as listener:
            assert json.loads(listener.receive_text())["type"] in ("status", "job")
    with client.websocket_connect("/queue/join") as listener:
        assert listener.receive_text() == '"gradio\'s"'


@pytest.mark.parametrize("path", ["/jobs/9/events", "/jobs/x/events", "/jobs/1/events?since=x"])
def test_what_is_not_there_is_refused(client, service, path):
    service.store.update(service.store.add("x", {}), state="stopped")
    with pytest.raises(WebSocketDisconnect) as refused, client.websocket_connect(V1 + path):
        pass
    assert refused.value.code == 1008


# --- Through a real server ------------------------------------------------------------------------


@pytest.fixture
def port(service):
    import uvicorn

    app = FastAPI()
    api.mount(app, service)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host="127.0.0.1",
            port=0,
            log_level="error",
            timeout_graceful_shutdown=1,
            ws_ping_interval=None,
        )
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


@contextlib.contextmanager
def connected(port, path):
    """Open a WebSocket by hand and read nothing but the first line of the answer; yields that and
    the socket.
    """
    with socket.socket() as listener:
        yield _begin(listener, port, path), listener


def _begin(listener, port, path):
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    listener.connect(("127.0.0.1", port))
    key = base64.b64encode(b"0123456789abcdef").decode()
    listener.sendall(
        (
            f"GET {V1}{path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade:"
            " websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key:"
            f" {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        ).encode()
    )
    return listener.recv(12).decode()


def get(port, path):
    with contextlib.closing(
        http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    ) as connection:
        connection.request("GET", V1 + path)
        answer = connection.getresponse()
        assert answer.status == 200
        return json.loads(answer.read())


def test_a_listener_that_never_reads_is_in_nobodys_way(service, port, settings, monkeypatch):
    monkeypatch.setattr(websockets, "LONGEST_SEND_SECONDS", 1.0)
    told = []
    tell = websockets._send_changes

    async def watched(websocket, feed):
        told.append("begun")
        try:
            await tell(websocket, feed)
        finally:
            told.append("over")

    monkeypatch.setattr(websockets, "_send_changes", watched)
    long = service.store.add("long", settings)
    service.store.update(long, state="stopped")
    service.job_folder(long).mkdir(parents=True)
    rows = "".join(f"{step},0.123456,0.123456,0.0001,{step}.0\n" for step in range(1, 100_001))
    (service.job_folder(long) / "metrics.csv").write_text(
        "step,loss,loss_average,learning_rate,seconds\n" + rows, encoding="utf-8"
    )
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(connected(port, f"/jobs/{long}/events"))
        job_id = service.start({**settings, "max_train_steps": 30})
        assert service.wait(job_id, 60)["state"] == "finished"
        assert (
            get(port, f"/jobs/{job_id}")["step"] == 30
            and len(get(port, f"/jobs/{job_id}/metrics")) == 30
        )
        until(lambda: told.count("over") == 3)  # given up after a while, though they never closed


def test_a_listener_that_vanishes_leaves_nothing(service, port, settings, monkeypatch):
    over = threading.Event()
    until_gone = websockets._until_gone

    async def watched(websocket):
        await until_gone(websocket)
        over.set()

    monkeypatch.setattr(websockets, "_until_gone", watched)
    with connected(port, "/events") as (status, _):
        assert status == "HTTP/1.1 101" and not over.wait(0.3)
    assert over.wait(10)
    with connected(port, "/jobs/9/events") as (status, _):
        assert status == "HTTP/1.1 403"


def test_a_fault_of_ours_is_logged_and_ends_the_listening(client, monkeypatch, caplog):
    def fail(events):
        raise KeyError("progress")

    monkeypatch.setattr(websockets.ServiceEvents, "messages", fail)
    with client.websocket_connect(f"{V1}/events") as listener:
        with pytest.raises(WebSocketDisconnect) as closed:
            listener.receive_text()
    assert closed.value.code == 1011
    assert "what happens to the jobs cannot be read" in caplog.text and "KeyError" in caplog.text
