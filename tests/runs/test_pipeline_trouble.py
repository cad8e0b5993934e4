"""What goes wrong by itself: memory that runs out, numbers that are not finite, a fault anywhere.
The run goes on or ends with a reason, the base is clean.
"""

import pytest
import torch
from safetensors.torch import load_file

from lora_trainer.base.errors import Refused
from lora_trainer.runs.pipeline import train_lora
from lora_trainer.runs.resume import state_step
from lora_trainer.settings.config import TrainConfig
from tests.support.base_models import assert_untouched, state_of
from tests.support.faults import OUT_OF_MEMORY, failing

# --- Memory ---------------------------------------------------------------------------------------


def test_memory_that_runs_out_costs_no_step_and_changes_nothing(
    host, settings, folder, monkeypatch
):
    config = TrainConfig.parse(
        {**settings, "batch_size": 4, "preview": False, "enable_bucket": False}
    )
    train_lora(config.replace(output_name="plain"), host)
    before = state_of(host.model.unet)
    monkeypatch.setattr(
        host.model,
        "predict",
        failing(host.model.predict, {3, 4, 6}, torch.cuda.OutOfMemoryError(OUT_OF_MEMORY)),
    )
    result = train_lora(config, host, folder=folder)
    assert result.steps == 6 and not result.stopped
    assert [remark.split(" Going on ")[1] for remark in result.warnings] == [
        "with gradient checkpointing.",
        "with 2 of 4 pictures at once.",
        "with 1 of 4 pictures at once.",
    ]
    assert (
        "2.00 GiB more were needed, 512.00 MiB were free" in result.warnings[0]
        and "at step 3" in result.warnings[0]
    )
    plain, adapted = load_file(host.lora_dir / "plain.safetensors"), load_file(result.output_file)
    assert all(torch.allclose(plain[name], adapted[name], rtol=1e-3, atol=1e-5) for name in plain)
    assert any(not torch.equal(plain[name], torch.zeros_like(plain[name])) for name in plain)
    monkeypatch.undo()
    assert_untouched(before, host.model.unet)


def test_the_last_rung_sets_the_encoders_aside(host, settings, monkeypatch):
    aside = []
    monkeypatch.setattr(host.model, "offload_encoders", lambda: aside.append(1), raising=False)
    monkeypatch.setattr(host.model, "predict", failing(host.model.predict, {2, 3}, MemoryError()))
    result = train_lora(TrainConfig.parse({**settings, "batch_size": 1}), host)
    assert aside == [1] and "the VAE and the text encoder set aside" in result.warnings[1]


def test_when_nothing_is_left_it_says_so_and_the_state_is_kept(host, settings, folder, monkeypatch):
    before = state_of(host.model.unet)
    monkeypatch.setattr(
        host.model,
        "predict",
        failing(
            host.model.predict,
            range(4, 99),
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory:"
                " you tried to allocate 3221225472 bytes."
            ),
        ),
    )
    with pytest.raises(
        Refused, match="Memory ran out at step 4 .3,072 MiB more were needed.*lower the resolution"
    ) as refusal:
        train_lora(TrainConfig.parse(settings), host, folder=folder)
    assert refusal.value.code == "out_of_memory" and state_step(folder) == 3
    monkeypatch.undo()
    assert_untouched(before, host.model.unet)


def test_the_setting_stop_climbs_no_ladder(host, settings, monkeypatch):
    predict = failing(host.model.predict, {2}, torch.cuda.OutOfMemoryError(OUT_OF_MEMORY))
    monkeypatch.setattr(host.model, "predict", predict)
    with pytest.raises(Refused, match="Memory ran out at step 2"):
        train_lora(TrainConfig.parse({**settings, "when_memory_runs_out": "stop"}), host)
    assert len(predict.calls) == 2


def test_memory_that_runs_out_inside_the_optimizer_rolls_back(host, settings, folder, monkeypatch):
    """Some weights may be changed then and others not; the run goes back to its last state, and
    ends like one that had no trouble.
    """
    config = TrainConfig.parse(
        {**settings, "save_state_steps": 2, "gradient_checkpointing": True, "batch_size": 1}
    )
    train_lora(config.replace(output_name="plain"), host)
    step = torch.optim.AdamW.step

    def half(self, *args, **kwargs):
        result = step(self, *args, **kwargs)
        half.calls += 1
        if half.calls == 4:
            raise torch.cuda.OutOfMemoryError(OUT_OF_MEMORY)
        return result

    half.calls = 0
    monkeypatch.setattr(torch.optim.AdamW, "step", half)
    result = train_lora(config, host, folder=folder)
    assert "Going on from step 2 with" in result.warnings[0]
    plain, other = load_file(host.lora_dir / "plain.safetensors"), load_file(result.output_file)
    assert all(torch.equal(plain[name], other[name]) for name in plain)


def test_memory_for_encoding(host, settings, monkeypatch):
    monkeypatch.setattr(
        host.model,
        "encode_images",
        failing(host.model.encode_images, {2}, torch.cuda.OutOfMemoryError(OUT_OF_MEMORY)),
    )
    with pytest.raises(Refused, match="Memory ran out while encoding the pictures .2.00 GiB"):
        train_lora(TrainConfig.parse(settings), host)


def test_other_errors_are_not_taken_for_memory(host, settings, monkeypatch):
    monkeypatch.setattr(
        host.model, "predict", failing(host.model.predict, {2}, RuntimeError("shapes do not fit"))
    )
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        train_lora(TrainConfig.parse(settings), host)


# --- Numbers --------------------------------------------------------------------------------------


def test_bf16_that_fails_goes_on_in_fp32(host, settings, monkeypatch):
    original = host.model.predict

    def predict(*args):
        predicted = original(*args)
        return (
            predicted
            if predicted.dtype == torch.float32 and not torch.is_autocast_cpu_enabled()
            else predicted * (float("nan") if host.count() > 2 else 1)
        )

    host.count = iter(range(1, 999)).__next__
    monkeypatch.setattr(host.model, "predict", predict)
    result = train_lora(TrainConfig.parse({**settings, "mixed_precision": "bf16"}), host)
    assert result.steps == 6 and result.warnings == (
        "The loss became nan at step 3. Going on with fp32.",
    )
    assert all(torch.isfinite(tensor).all() for tensor in load_file(result.output_file).values())


def test_no_safer_precision_names_pictures_and_captions(host, settings, folder, monkeypatch):
    monkeypatch.setattr(
        host.model,
        "predict",
        failing(host.model.predict, {3}, spoil=lambda predicted: predicted * float("inf")),
    )
    with pytest.raises(
        Refused,
        match=r"at step 3\. Its pictures were \d\.png \('a circle, number \d'\).*a tenth of it",
    ):
        train_lora(TrainConfig.parse(settings), host, folder=folder)
    assert state_step(folder) == 2 and not list(host.lora_dir.glob("*.safetensors"))


def test_spoiled_weights_go_back_to_the_last_finite_state(host, settings, folder, monkeypatch):
    config = TrainConfig.parse({**settings, "mixed_precision": "bf16", "save_state_steps": 2})
    step = torch.optim.AdamW.step

    def spoiling(self, *args, **kwargs):
        result = step(self, *args, **kwargs)
        spoiling.calls += 1
        if spoiling.calls == 3:
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(float("nan"))
        return result

    spoiling.calls = 0
    monkeypatch.setattr(torch.optim.AdamW, "step", spoiling)
    result = train_lora(config, host, folder=folder)
    assert "The loss became nan at step 4. Going on from step 2 with fp32." in result.warnings
    assert result.steps == 6 and all(
        torch.isfinite(tensor).all() for tensor in load_file(result.output_file).values()
    )


# --- Faults at each stage -------------------------------------------------------------------------

STAGES = {
    "encode": ("host.model", "encode_images"),
    "attach": ("lora_trainer.lora.adapters.Adapters", "attach"),
    "forward": ("host.model", "predict"),
    "backward": ("torch.Tensor", "backward"),
    "optimizer": ("torch.optim.AdamW", "step"),
    "save": ("lora_trainer.lora.save", "save"),
    "register": ("host", "register"),
    "state": ("lora_trainer.training.state_files", "save"),
    "give way": ("host", "give_way"),
}


@pytest.mark.parametrize(
    "error", [RuntimeError("injected"), KeyboardInterrupt()], ids=["error", "interrupt"]
)
@pytest.mark.parametrize("stage", STAGES)
def test_base_is_untouched_after_a_fault_anywhere(
    host, settings, folder, stage, error, monkeypatch
):
    before = state_of(host.model.unet)
    owner, name = STAGES[stage]

    def fail(*args, **kwargs):
        raise error

    if owner in ("host", "host.model"):
        monkeypatch.setattr(host if owner == "host" else host.model, name, fail)
    else:
        monkeypatch.setattr(f"{owner}.{name}", fail)
    host.waiting = True
    config = TrainConfig.parse({**settings, "gradient_checkpointing": True})
    if (stage, type(error)) == ("register", RuntimeError):  # the LoRA is saved by then
        assert any(
            "could not be made known" in remark
            for remark in train_lora(config, host, folder=folder).warnings
        )
    else:
        with pytest.raises(type(error)):
            train_lora(config, host, folder=folder)
    monkeypatch.undo()
    assert_untouched(before, host.model.unet)


def test_main_memory_that_runs_out_while_encoding_is_said(host, settings, monkeypatch):
    monkeypatch.setattr(
        host.model, "encode_images", failing(host.model.encode_images, {1}, MemoryError())
    )
    with pytest.raises(Refused, match="Memory ran out while encoding the pictures") as refused:
        train_lora(TrainConfig.parse(settings), host)
    assert refused.value.code == "out_of_memory"
