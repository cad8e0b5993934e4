"""A host whose own code fails when a LoRA is made known costs no run and no snapshot."""

from lora_trainer.runs.pipeline import train_lora
from lora_trainer.runs.progress import ProgressReporter
from lora_trainer.settings.config import TrainConfig


def test_a_host_that_fails_costs_no_run_and_is_told_once(host, settings, monkeypatch):
    def fail(path):
        raise AttributeError("networks.list_available_networks")

    monkeypatch.setattr(host, "register", fail)
    config = TrainConfig.parse({**settings, "save_steps": 2, "preview": False})
    reporter = ProgressReporter()
    result = train_lora(config, host, reporter=reporter)
    assert result.steps == 6 and result.output_file.is_file()
    assert reporter.status.snapshots == ("mine-000002", "mine-000004")
    known = [warning for warning in result.warnings if "could not be made known" in warning]
    assert len(known) == 1 and "networks.list_available_networks" in known[0]


def test_the_warning_goes_once_the_host_knows_the_lora(host, settings, monkeypatch):
    register, calls = host.register, []

    def fail_once(path):
        calls.append(path)
        if len(calls) == 1:
            raise RuntimeError("busy")
        register(path)

    monkeypatch.setattr(host, "register", fail_once)
    config = TrainConfig.parse({**settings, "save_steps": 2, "preview": False})
    assert not any("made known" in each for each in train_lora(config, host).warnings)
