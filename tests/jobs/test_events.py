"""What a listener is told, without a server: nothing twice, nothing lost, also of runs that are
over before anybody looked.
"""

import pytest

from lora_trainer.base.errors import Refused
from lora_trainer.jobs import events
from lora_trainer.jobs.events import JobFeed, ServiceFeed
from tests.support.waiting import until


def rows_of(messages):
    return [
        (message.get("id"), row["step"])
        for message in messages
        if message["type"] == "metrics"
        for row in message["rows"]
    ]


def test_a_run_that_was_over_before_anybody_looked(service, settings):
    listener = ServiceFeed(service)
    assert [message["type"] for message in listener.news()] == [
        "status",
        "jobs",
    ] and not listener.has_news()
    job_id = service.start(settings)
    service.wait(job_id, 60)
    assert listener.has_news()
    messages = listener.news()
    assert (
        rows_of(messages) == [(job_id, step) for step in range(1, 7)]
        and messages[-1]["jobs"][0]["state"] == "finished"
    )
    assert listener.news() == [] and not listener.has_news()


def test_the_rest_of_a_run_and_the_next(service, settings):
    first = service.start(settings)
    service.wait(first, 60)
    listener = ServiceFeed(service)
    assert rows_of(listener.news()) == []  # what was before is fetched by GET
    second = service.start({**settings, "output_name": "second", "max_train_steps": 2})
    service.wait(second, 60)
    assert rows_of(listener.news()) == [(second, 1), (second, 2)]
    service.resume(second, {"max_train_steps": 4})
    service.wait(second, 60)
    assert rows_of(listener.news()) == [(second, 3), (second, 4)]


def test_a_deleted_job_ends_its_own_feed_only(service, settings):
    job_id = service.start({**settings, "max_train_steps": 2})
    service.wait(job_id, 60)
    one, every = JobFeed(service, job_id), ServiceFeed(service)
    assert rows_of(one.news()) == [(None, 1), (None, 2)] and every.news()
    service.delete(job_id)
    assert one.has_news() and every.has_news() and every.news()[-1] == {"type": "jobs", "jobs": []}
    with pytest.raises(Refused):
        one.news()
    with pytest.raises(Refused):
        JobFeed(service, job_id)


def test_many_rows_come_in_portions(service, settings, monkeypatch):
    monkeypatch.setattr(events, "MOST_ROWS", 4)
    job_id = service.start(settings)
    service.wait(job_id, 60)
    assert [len(message["rows"]) for message in JobFeed(service, job_id).news()[1:]] == [4, 2]


def test_figures_are_told_without_the_list(service, busy):
    until(
        lambda: service.store.get(busy)["state"] == "training" and service.job(busy)["step"] >= 2
    )  # what tells of its beginning has been written
    listener = ServiceFeed(service)
    listener.news()
    step = service.job(busy)["step"]
    until(lambda: service.job(busy)["step"] >= step + 3)
    messages = listener.news()
    assert {message["type"] for message in messages} == {"job", "metrics"} and messages[0]["job"][
        "step"
    ] > step


def test_a_run_that_went_on_and_ended_again_between_two_looks(service, settings):
    job_id = service.start({**settings, "max_train_steps": 100_000})
    service.stop(job_id)
    service.wait(job_id, 60)
    listener = ServiceFeed(service)
    listener.news()
    service.resume(job_id)
    service.stop(job_id)
    service.wait(job_id, 60)
    assert service.job(job_id)["state"] == "stopped" and "jobs" in [
        message["type"] for message in listener.news()
    ]
