"""What goes wrong by itself: numbers that are not finite, memory that runs out, disks that refuse.
The run goes on or ends with a reason, the base is clean.
"""

import errno
import os

import pytest
import torch
from safetensors.torch import load_file

from lora_trainer.base import files
from lora_trainer.base.control import Control
from lora_trainer.base.errors import Refused
from lora_trainer.runs import output_files
from lora_trainer.runs.pipeline import train_lora
from lora_trainer.runs.progress import ProgressReporter
from lora_trainer.runs.resume import state_folder, state_step
from lora_trainer.settings.config import TrainConfig
from lora_trainer.training import state_files
from tests.runs.test_pipeline import assert_untouched, state_of

OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB of"
    " which 512.00 MiB is free. Including non-PyTorch memory"
)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "job"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(output_files, "PAUSE_SECONDS", 0.01)


def failing(original, when, error=None, spoil=None):
    """Wrap a function so that its calls with the numbers in `when`, counted from 1, fail or are
    spoiled.
    """
    calls = []

    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) in when and error:
            raise error
        result = original(*args, **kwargs)
        return spoil(result) if len(calls) in when and spoil else result

    wrapped.calls = calls
    return wrapped


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


def test_no_file_with_numbers_that_are_not_finite(host, settings, monkeypatch):
    """Weights too large for the file's type are refused, and what was there stays."""
    config = TrainConfig.parse({**settings, "save_precision": "fp16", "overwrite": True})
    old = train_lora(config, host).output_file.read_bytes()
    step = torch.optim.AdamW.step

    def huge(self, *args, **kwargs):
        result = step(self, *args, **kwargs)
        with torch.no_grad():
            self.param_groups[0]["params"][1].fill_(1e6)
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", huge)
    with pytest.raises(Refused, match="not finite"):
        train_lora(config.replace(max_train_steps=1), host)
    assert (host.lora_dir / "mine.safetensors").read_bytes() == old


# --- Disks ----------------------------------------------------------------------------------------


def refuse_writes(monkeypatch, where, *, code=errno.ENOSPC, times=10**9):
    """Every write into the folder fails, the first `times` times."""
    original, count = files.write_atomically, []

    def write(path, data, **options):
        if where in path.parents and len(count) < times:
            count.append(path.name)
            raise OSError(code, os.strerror(code))
        return original(path, data, **options)

    for module in ("base.files", "training.state_files", "lora.save"):
        monkeypatch.setattr(f"lora_trainer.{module}.write_atomically", write)
    return count


def test_a_full_disk_ends_with_a_file_in_the_jobs_folder(host, settings, folder, monkeypatch):
    refuse_writes(monkeypatch, host.lora_dir)
    told = []
    result = train_lora(
        TrainConfig.parse({**settings, "save_steps": 2, "preview": False}),
        host,
        folder=folder,
        reporter=ProgressReporter(lambda progress: told.append(progress.warnings)),
    )
    assert (
        result.output_file == folder / "mine.safetensors"
        and load_file(result.output_file)
        and result.steps == 6
    )
    assert any(
        "No space left on device. Free some space" in remark
        and "tried again every half minute" in remark
        for remarks in told
        for remark in remarks
    )
    assert (
        max(map(len, told)) == 1 and len(result.warnings) == 1
    )  # the same trouble at every snapshot is one remark, and the end takes its place
    assert "So it was saved to" in result.warnings[0] and str(folder) in result.warnings[0]
    assert result.lora_tag == ""  # no prompt finds it there


def test_everything_full_ends_in_the_temporary_folder(
    host, settings, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    for where in (host.lora_dir, folder):
        refuse_writes(monkeypatch, where)
    result = train_lora(TrainConfig.parse({**settings, "preview": False}), host, folder=folder)
    assert result.output_file == tmp_path / "elsewhere" / "train-lora" / "mine.safetensors"
    assert any("The progress cannot be kept" in remark for remark in result.warnings)


def test_a_disk_that_recovers_is_used_again(host, settings, folder, monkeypatch):
    monkeypatch.setattr("lora_trainer.runs.retry.RETRY_SECONDS", 0.0)
    tried = refuse_writes(monkeypatch, state_folder(folder), times=2)
    train_lora(TrainConfig.parse(settings), host, folder=folder)
    assert len(tried) == 2 and state_files.latest(state_folder(folder)).step == 6


def test_a_locked_file_gets_a_name_beside_it(host, settings, folder, monkeypatch):
    """As on Windows, while another program holds the LoRA open."""
    config = TrainConfig.parse({**settings, "overwrite": True, "preview": False})
    old = train_lora(config, host).output_file.read_bytes()
    replace = os.replace

    def locked(source, target):
        if os.fspath(target).endswith(os.sep + "mine.safetensors") and "Lora" in os.fspath(target):
            raise PermissionError(
                errno.EACCES,
                "The process cannot access the file because it is being used by another process",
            )
        return replace(source, target)

    monkeypatch.setattr(os, "replace", locked)
    result = train_lora(config, host, folder=folder)
    assert (
        result.output_file.name == "mine-2.safetensors"
        and result.lora_tag == "<lora:mine-2:0.8>"
        and host.registered[-1] == result.output_file
    )
    assert (host.lora_dir / "mine.safetensors").read_bytes() == old


def test_what_does_not_read_back_is_no_file(host, settings, tmp_path, monkeypatch):
    config = TrainConfig.parse({**settings, "overwrite": True})
    old = train_lora(config, host).output_file.read_bytes()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(
        "pathlib.Path.read_bytes",
        lambda self, original=type(tmp_path).read_bytes: (
            original(self)[:-1] + b"?" if self.suffix == ".tmp" else original(self)
        ),
    )
    with pytest.raises(Refused, match="does not read back"):
        train_lora(config, host)
    monkeypatch.undo()
    assert (host.lora_dir / "mine.safetensors").read_bytes() == old


def test_a_failed_run_puts_back_what_its_snapshots_replaced(host, settings, folder, monkeypatch):
    config = TrainConfig.parse({**settings, "overwrite": True, "save_steps": 2})
    old = train_lora(config, host).output_file.read_bytes()
    monkeypatch.setattr(
        host.model, "predict", failing(host.model.predict, {5}, RuntimeError("injected"))
    )
    seen = []
    with pytest.raises(RuntimeError):
        train_lora(
            config.replace(seed=7),
            host,
            folder=folder,
            reporter=ProgressReporter(
                lambda progress: (
                    seen.append((host.lora_dir / "mine.safetensors").read_bytes() != old)
                    if progress.snapshots
                    else None
                )
            ),
        )
    assert seen and all(seen)  # the tag meant the newest snapshot
    assert (host.lora_dir / "mine.safetensors").read_bytes() == old and host.registered[
        -1
    ] == host.lora_dir / "mine.safetensors"


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


# --- Pausing --------------------------------------------------------------------------------------


def test_pause_frees_the_model_and_goes_on(host, settings, folder, monkeypatch):
    config, control, seen = TrainConfig.parse(settings), Control(), []
    train_lora(config.replace(output_name="plain"), host)
    plain = state_of(host.model.unet)
    give_way = host.give_way

    def look(**options):
        seen.append(
            (
                state_step(folder),
                type(host.model.unet.get_submodule("input_blocks.1.1.proj_in")) is torch.nn.Conv2d,
            )
        )
        control.resume()
        return give_way(**options)

    monkeypatch.setattr(host, "give_way", look)
    told = []
    train_lora(
        config,
        host,
        folder=folder,
        control=control,
        reporter=ProgressReporter(
            lambda progress: (
                told.append((progress.stage, progress.waiting_for)),
                control.pause() if progress.step == 2 else None,
            )
        ),
    )
    assert seen[0] == (2, True) and ("paused", "user") in told
    assert_untouched(plain, host.model.unet)
    one, other = (
        load_file(host.lora_dir / "plain.safetensors"),
        load_file(host.lora_dir / "mine.safetensors"),
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_pause_that_is_asked_for_while_a_picture_is_drawn(host, settings, folder, monkeypatch):
    """It is told, the progress is kept, memory is freed and a snapshot can be had, before the
    picture is done.
    """
    control, told, seen = Control(), [], []

    def give_way(*, until, on_wait, should_stop):
        host.waiting = False
        control.pause(free_memory=True)
        control.take_snapshot()
        assert not until() and not until()
        seen.append(
            (
                state_step(folder),
                sorted(path.name for path in host.lora_dir.glob("mine*.safetensors")),
            )
        )
        control.resume()
        return until()

    monkeypatch.setattr(host, "give_way", give_way)

    def listen(progress):
        told.append((progress.stage, progress.waiting_for, progress.message))
        host.waiting = progress.step == 3 and not seen

    train_lora(
        TrainConfig.parse(settings),
        host,
        folder=folder,
        control=control,
        reporter=ProgressReporter(listen),
    )
    assert (
        seen == [(3, ["mine-000003.safetensors", "mine.safetensors"])]
        and ("paused", "user", "Paused.") in told
    )
    assert told[-1][0] != "paused"


def test_memory_that_runs_out_on_coming_back_from_a_picture(host, settings, folder, monkeypatch):
    from lora_trainer.training.model_patches import ModelPatches

    monkeypatch.setattr(
        ModelPatches,
        "apply",
        failing(ModelPatches.apply, {2}, torch.cuda.OutOfMemoryError(OUT_OF_MEMORY)),
    )
    result = train_lora(
        TrainConfig.parse(settings),
        host,
        folder=folder,
        reporter=ProgressReporter(lambda progress: setattr(host, "waiting", progress.step == 3)),
    )
    assert result.steps == 6 and "gradient checkpointing" in result.warnings[0]


def test_exclusive_does_not_give_way(host, settings):
    for sharing, times in (("exclusive", 0), ("share", 1)):
        host.waiting, host.gave_way = True, 0
        train_lora(
            TrainConfig.parse({**settings, "sharing": sharing, "output_name": sharing}), host
        )
        assert host.gave_way == times


def test_a_snapshot_on_demand(host, settings, folder):
    control = Control()
    told = []
    train_lora(
        TrainConfig.parse(settings),
        host,
        folder=folder,
        control=control,
        reporter=ProgressReporter(
            lambda progress: (
                told.append(progress.snapshots),
                control.take_snapshot() if progress.step == 2 and not progress.snapshots else None,
            )
        ),
    )
    assert (host.lora_dir / "mine-000002.safetensors").is_file() and told[-1] == ("mine-000002",)


def test_main_memory_that_runs_out_while_encoding_is_said(host, settings, monkeypatch):
    monkeypatch.setattr(
        host.model, "encode_images", failing(host.model.encode_images, {1}, MemoryError())
    )
    with pytest.raises(Refused, match="Memory ran out while encoding the pictures") as refused:
        train_lora(TrainConfig.parse(settings), host)
    assert refused.value.code == "out_of_memory"
