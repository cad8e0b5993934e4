"""What a run would do is said before it begins, with what would end each warning and error."""

from lora_trainer.base.contracts import ModelStatus


def test_plan_says_what_will_happen(service, settings):
    plan = service.planner.plan({**settings, "max_train_steps": 0, "epochs": 3})
    assert (plan["pictures"], plan["epochs"], plan["errors"], plan["lora_tag"]) == (
        6,
        3,
        [],
        "<lora:mine:0.8>",
    )
    assert (
        sum(bucket["pictures"] for bucket in plan["buckets"]) == 6
        and plan["trainable_parameters"] > 0
        and plan["estimated_seconds"] is None
    )
    service.wait(service.start({**settings, "max_train_steps": 0, "epochs": 3}), timeout=60)
    assert (
        service.jobs()[0]["step"] == plan["steps"]
        and service.planner.plan({**settings, "output_name": "second"})["estimated_seconds"] > 0
    )


def test_estimates_come_from_finished_jobs(service, settings):
    for state, seconds in (("finished", 2.0), ("failed", 50.0)):
        service.store.update(
            service.store.add("x", service.settings.parse(settings).to_dict(), checkpoint="tiny"),
            state=state,
            progress={"seconds_per_step": seconds},
        )
    assert service.planner.plan(settings)["estimated_seconds"] == 2.0 * 6


def test_a_checkpoint_of_another_kind_has_no_estimate(service, settings, host):
    service.hold_queue()
    service.store.update(
        service.start(settings), state="finished", progress={"seconds_per_step": 2.0}
    )
    settings = {**settings, "output_name": "another"}
    for checkpoint, family, size_px, seconds in (
        ("tiny", "sd1", 0, 12.0),
        ("another", "sd1", 0, 12.0),
        ("other", "sdxl", 0, None),
        ("other", "sd1", 64, None),
    ):
        host.status = ModelStatus(
            True, checkpoint=checkpoint, family=family, size_px=size_px, prediction_type="epsilon"
        )
        assert service.planner.plan(settings)["estimated_seconds"] == seconds
    host.status = ModelStatus(True, checkpoint="tiny", family="sd1", prediction_type="epsilon")
    assert service.planner.plan({**settings, "batch_size": 3})["estimated_seconds"] is None


def test_the_plan_foresees_a_full_disk(service, settings, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    assert [error["code"] for error in service.planner.plan(settings)["errors"]] == ["disk_full"]


def test_a_plan_has_a_remedy_for_what_it_warns_of(service, settings, host):
    host.status = ModelStatus(True, checkpoint="pony", family="sdxl", size_px=1024)
    plan = service.planner.plan({**settings, "batch_size": 20})
    assert all(each["message"] in plan["warnings"] for each in plan["advice"])
    assert {"resolution": 1024} in [each["changes"] for each in plan["advice"]]
    for each in plan["advice"]:
        assert (
            each["message"]
            not in service.planner.plan({**settings, "batch_size": 20, **each["changes"]})[
                "warnings"
            ]
        )


def test_a_refusal_that_nothing_is_known_of_has_no_remedies(service, settings):
    (error,) = service.planner.plan({**settings, "train_data_dir": ""})["errors"]
    assert "remedies" not in error
    (error,) = service.planner.plan({**settings, "nonsense": 1})["errors"]
    assert "remedies" not in error


def test_validation_of_two_pictures_is_refused_with_a_remedy(service, settings, pictures):
    for number in range(2, 6):
        (pictures / f"{number}.png").unlink()
    values = {**settings, "validation_split": 0.5}
    (error,) = service.planner.plan(values)["errors"]
    assert service.planner.plan({**values, **error["remedies"][0]["changes"]})["errors"] == []
