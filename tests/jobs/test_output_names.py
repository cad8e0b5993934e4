"""Two jobs do not write the same LoRA file."""

import pytest

from lora_trainer.base.errors import Refused
from tests.support.queued_jobs import named, waiting


def test_duplicate_takes_kohyas_names(service, settings):
    first = service.start(settings)
    service.wait(first, 60)
    again = service.job(
        service.duplicate(first, {"network_dim": 8, "lora_alpha": 3, "network_alpha": 5})
    )
    assert (again["config"]["lora_rank"], again["config"]["lora_alpha"]) == (8, 3) and service.wait(
        again["id"], 60
    )["state"] == "finished"


def test_a_name_that_is_taken_comes_with_one_that_is_free_everywhere(service, settings, host):
    (host.lora_dir / "old").mkdir()
    (host.lora_dir / "old" / "mine.safetensors").write_bytes(b"x")
    (host.lora_dir / "old" / "mine-2.safetensors").write_bytes(b"x")
    (host.lora_dir / "mine-3-000100.safetensors").write_bytes(b"x")
    service.hold_queue()
    service.start({**settings, "output_name": "mine-4"})
    values = {**settings, "save_steps": 2}
    (error,) = service.planner.plan(values)["errors"]
    assert error["code"] == "name_taken" and error["remedies"] == [
        {"label": "Call it mine-5", "changes": {"output_name": "mine-5"}}
    ]
    assert service.planner.plan({**values, **error["remedies"][0]["changes"]})["errors"] == []


def test_two_jobs_do_not_make_the_same_file(service, settings, busy):
    service.start(named(settings, "twice"))
    for name in ("twice", "busy"):
        with pytest.raises(Refused, match=f"call the new one {name}-2") as caught:
            service.start(named(settings, name))
        assert (
            caught.value.code == "name_taken"
            and service.planner.plan(named(settings, name))["errors"][0]["code"] == "name_taken"
        )
    service.start(named(settings, "twice", overwrite=True))
    service.start(named(settings, "twice", output_dir=str(service.host.data_dir)))
    assert waiting(service) == ["twice"] * 3
