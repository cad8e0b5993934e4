"""What a listener is told, without a server: nothing twice, nothing lost, also of runs that are
over before anybody looked.
"""

import pytest

from lora_trainer.base.errors import Refused
from lora_trainer.jobs import events
from lora_trainer.jobs.events import JobEvents, ServiceEvents
from tests.support.waiting import until


def rows_of(messages):
    return [
        (message.get("id"), row["step"])
        for message in messages
        if message["type"] == "metrics"
        for row in message["rows"]
    ]


def test_a_run_that_was_over_before_anybody_looked(service, settings):
    listener = ServiceEvents(service)
    assert [message["type"] for message in listener.messages()] == [
        "status",
        "jobs",
    ] and not listener.has_changed()
    job_id = service.start(settings)
    service.wait(job_id, 60)
    assert listener.has_changed()
    messages = listener.messages()
    assert (
        rows_of(messages) == [(job_id, step) for step in range(1, 7)]
        and messages[-1]["jobs"][0]["state"] == "finished"
    )
    assert listener.messages() == [] and not listener.has_changed()


def test_the_rest_of_a_run_and_the_next(service, settings):
    first = service.start(settings)
    service.wait(first, 60)
    listener = ServiceEvents(service)
    assert rows_of(listener.messages()) == []  # what was before is fetched by GET
    second = service.start({**settings, "output_name": "second", "max_train_steps": 2})
    service.wait(second, 60)
    assert rows_of(listener.messages()) == [(second, 1), (second, 2)]
    service.resume(second, {"max_train_steps": 4})
    service.wait(second, 60)
    assert rows_of(listener.messages()) == [(second, 3), (second, 4)]


def test_a_deleted_job_ends_its_own_feed_only(service, settings):
    job_id = service.start({**settings, "max_train_steps": 2})
    service.wait(job_id, 60)
    one, every = JobEvents(service, job_id), ServiceEvents(service)
    assert rows_of(one.messages()) == [(None, 1), (None, 2)] and every.messages()
    service.delete(job_id)
    assert (
        one.has_changed()
        and every.has_changed()
        and every.messages()[-1] == {"type": "jobs", "jobs": []}
    )
    with pytest.raises(Refused):
        one.messages()
    with pytest.raises(Refused):
        JobEvents(service, job_id)


def test_many_rows_come_in_portions(service, settings, monkeypatch):
    monkeypatch.setattr(events, "MOST_ROWS", 4)
    job_id = service.start(settings)
    service.wait(job_id, 60)
    assert [len(message["rows"]) for message in JobEvents(service, job_id).messages()[1:]] == [4, 2]


def test_figures_are_told_without_the_list(service, busy):
    until(
        lambda: service.store.get(busy).state == "training" and service.job(busy)["step"] >= 2
    )  # what tells of its beginning has been written
    listener = ServiceEvents(service)
    listener.messages()
    step = service.job(busy)["step"]
    until(lambda: service.job(busy)["step"] >= step + 3)
    messages = listener.messages()
    assert {message["type"] for message in messages} == {"job", "metrics"} and messages[0]["job"][
        "step"
    ] > step


def test_a_run_that_went_on_and_ended_again_between_two_looks(service, settings):
    job_id = service.start({**settings, "max_train_steps": 100_000})
    service.stop(job_id)
    service.wait(job_id, 60)
    listener = ServiceEvents(service)
    listener.messages()
    service.resume(job_id)
    service.stop(job_id)
    service.wait(job_id, 60)
    assert service.job(job_id)["state"] == "stopped" and "jobs" in [
        message["type"] for message in listener.messages()
    ]
