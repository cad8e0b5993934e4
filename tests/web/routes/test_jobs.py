"""Jobs by REST: the forms of requests and answers that the page relies on."""

import csv
import io

import pytest

from tests.support.waiting import LONG, until

V1 = "/train-lora/v1"
OVER = ("finished", "stopped", "failed", "interrupted")


@pytest.fixture
def ask(client):
    """Ask and return the JSON of an answer that must be well."""

    def ask(method, path, body=None, status=200):
        answer = client.request(method, V1 + path, **({"json": body} if body is not None else {}))
        assert answer.status_code == status, answer.text
        return answer.json()

    return ask


def end_of(ask, job_id):
    return until(lambda: (job := ask("GET", f"/jobs/{job_id}"))["state"] in OVER and job, 60)


def test_a_queue_by_rest(ask, settings):
    busy = ask("POST", "/jobs", {"config": {**settings, **LONG, "output_name": "busy"}}, 201)
    assert (
        set(busy) == {"id", "state", "position"}
        and busy["state"] in ("preparing", "training")
        and busy["position"] is None
    )
    short = {**settings, "max_train_steps": 2}
    a, b = (ask("POST", "/jobs", {"config": {**short, "output_name": name}}, 201) for name in "ab")
    assert (a["state"], a["position"], b["position"]) == ("queued", 0, 1)
    assert [job["id"] for job in ask("POST", f"/jobs/{b['id']}/move", {"position": 0})] == [
        b["id"],
        a["id"],
    ]
    status = ask("GET", "/status")
    assert (status["queue_held"], status["queued"], status["current_job"]["id"]) == (
        False,
        2,
        busy["id"],
    )
    assert ask("POST", f"/jobs/{a['id']}/stop")["state"] == "stopped"
    until(lambda: ask("GET", f"/jobs/{busy['id']}")["step"])
    assert ask("POST", "/queue/hold")["queue_held"] and ask("GET", "/status")["queue_held"]
    ask("POST", f"/jobs/{busy['id']}/stop")
    job = end_of(ask, busy["id"])
    assert {
        "position": None,
        "resumable": True,
        "waiting_for": "",
        "checkpoint": "tiny",
        "snapshots": [],
        "remarks": [],
        "pausing": False,
        "free_memory": False,
    }.items() <= job.items()
    assert (
        job["resume_step"] == job["step"]
        and job["state_step"] == job["step"]
        and job["ended_at"] == job["finished_at"]
        and "resume" not in job
    )
    assert (
        ask("GET", f"/jobs/{b['id']}")["state"] == "queued"
        and not ask("POST", "/queue/start")["queue_held"]
    )
    assert end_of(ask, b["id"])["state"] == "finished"
    twin = ask("POST", f"/jobs/{b['id']}/duplicate", {"changes": {"lora_rank": 2}}, 201)
    assert end_of(ask, twin["id"])["config"]["lora_rank"] == 2
    assert (
        ask("DELETE", f"/jobs/{b['id']}") == {"moved": []}
        and ask("GET", f"/jobs/{b['id']}", status=404)["error"]["code"] == "not_found"
    )


def test_pause_resume_and_snapshot_by_rest(ask, settings, host):
    job_id = ask("POST", "/jobs", {"config": {**settings, **LONG}}, 201)["id"]
    until(lambda: ask("GET", f"/jobs/{job_id}")["step"])
    assert ask("POST", f"/jobs/{job_id}/pause", {"free_memory": True})["free_memory"]
    job = until(lambda: (job := ask("GET", f"/jobs/{job_id}"))["state"] == "paused" and job)
    assert (
        job["waiting_for"] == "user" and ask("GET", "/status")["current_job"]["state"] == "paused"
    )
    ask("POST", f"/jobs/{job_id}/resume")
    ask("POST", f"/jobs/{job_id}/snapshot")
    assert until(lambda: ask("GET", f"/jobs/{job_id}")["snapshots"])
    ask("POST", f"/jobs/{job_id}/load-checkpoint")
    ask("POST", f"/jobs/{job_id}/stop")
    step = end_of(ask, job_id)["step"]
    refusal = ask("POST", f"/jobs/{job_id}/resume", {"changes": {"lora_rank": 9}}, 422)["error"]
    assert (refusal["code"], refusal["field"]) == ("bad_value", "lora_rank")
    ask(
        "POST",
        f"/jobs/{job_id}/resume",
        {"changes": {"max_train_steps": step + 3}, "anyway": False},
    )
    assert end_of(ask, job_id)["step"] == step + 3


def test_reasons_come_with_the_refusal(ask, settings, pictures):
    job_id = ask("POST", "/jobs", {"config": {**settings, **LONG}}, 201)["id"]
    until(lambda: ask("GET", f"/jobs/{job_id}")["step"])
    ask("POST", f"/jobs/{job_id}/stop")
    end_of(ask, job_id)
    (pictures / "0.txt").write_text("another", encoding="utf-8")
    error = ask("POST", f"/jobs/{job_id}/resume", {}, 409)["error"]
    assert (
        error["code"] == "cannot_resume"
        and error["anyway_possible"] is True
        and "0.png" in error["reasons"][0]
    )


def test_figures_and_log_are_fetched(ask, client, settings):
    job_id = ask("POST", "/jobs", {"config": {**settings, "output_name": "zwölf"}}, 201)["id"]
    assert end_of(ask, job_id)["state"] == "finished"
    answer = client.get(f"{V1}/jobs/{job_id}/metrics.csv")
    assert answer.headers["content-type"].startswith("text/csv") and answer.headers[
        "content-disposition"
    ].startswith("attachment")
    assert [row["step"] for row in csv.DictReader(io.StringIO(answer.text))] == list("123456")
    log = ask("GET", f"/jobs/{job_id}/log")
    assert "is ready" in log["text"] and ask("GET", f"/jobs/{job_id}/log?since={log['next']}") == {
        "text": "",
        "next": log["next"],
    }


@pytest.mark.parametrize(
    "method, path, body, status, code, field",
    [
        ("POST", "/jobs/1/pause", {}, 409, "not_running", None),
        ("POST", "/jobs/1/pause", {"free_memory": "yes"}, 422, "bad_request", "free_memory"),
        ("POST", "/jobs/1/snapshot", None, 409, "not_running", None),
        ("POST", "/jobs/1/resume", {"changes": []}, 422, "bad_request", "changes"),
        (
            "POST",
            "/jobs/1/resume",
            {"changes": {"lerning_rate": 1}},
            422,
            "unknown_setting",
            "lerning_rate",
        ),
        ("POST", "/jobs/1/resume", {"anyway": 1}, 422, "bad_request", "anyway"),
        ("POST", "/jobs/1/move", {"position": 0}, 409, "not_running", None),
        ("POST", "/jobs/1/move", {}, 422, "bad_request", "position"),
        ("POST", "/jobs/1/move", {"position": -1}, 422, "bad_value", "position"),
        ("POST", "/jobs/1/move", {"position": 0.5}, 422, "bad_value", "position"),
        ("POST", "/jobs/1/load-checkpoint", None, 409, "not_running", None),
        (
            "POST",
            "/jobs/1/duplicate",
            {"changes": {"output_name": "../x"}},
            422,
            "bad_name",
            "output_name",
        ),
        ("GET", "/jobs/1/metrics.csv", None, 404, "not_found", None),
        ("GET", "/jobs/1/log?since=x", None, 422, "bad_request", "since"),
        *(
            (method, f"/jobs/9{path}", body, 404, "not_found", None)
            for method, path, body in (
                ("POST", "/pause", {}),
                ("POST", "/resume", {}),
                ("POST", "/snapshot", None),
                ("POST", "/move", {"position": 0}),
                ("POST", "/duplicate", {}),
                ("POST", "/load-checkpoint", None),
                ("DELETE", "", None),
                ("GET", "/log", None),
                ("GET", "/metrics.csv", None),
            )
        ),
    ],
)
def test_what_cannot_be_says_why(
    client, service, settings, method, path, body, status, code, field
):
    service.store.update(service.store.add("never begun", settings), state="interrupted")
    answer = client.request(method, V1 + path, **({"json": body} if body is not None else {}))
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error.get("field")) == (
        status,
        code,
        field,
    ) and error["message"].endswith((".", "!", "?"))


def test_loras_that_a_deleted_job_leaves_are_named(ask, service, settings, host):
    job_id = service.store.add("mine", settings)
    service.store.update(job_id, state="interrupted")
    kept = service.job_folder(job_id) / "replaced" / "mine.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"the old one")
    assert ask("DELETE", f"/jobs/{job_id}") == {"moved": [str(host.lora_dir / "mine.safetensors")]}


def test_a_queued_job_says_which_checkpoint_it_is_for(ask, settings):
    ask("POST", "/queue/hold")
    job_id = ask("POST", "/jobs", {"config": settings}, 201)["id"]
    assert (
        ask("GET", f"/jobs/{job_id}")["checkpoint"]
        == ask("GET", "/jobs")[0]["checkpoint"]
        == "tiny"
    )
    ask("POST", f"/jobs/{job_id}/load-checkpoint")
