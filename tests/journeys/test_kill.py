"""Invariant 5 with real processes: `train`, killed by SIGKILL at random moments and gone on with
`--resume`, ends with the weights of an unbroken run.

TRAIN_LORA_KILLS says how many kills (default 3; some seconds each).
"""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.support.processes import REPOSITORY, Process, start

pytest.importorskip("diffusers", reason="the standalone trainer needs diffusers")

KILLS = int(os.environ.get("TRAIN_LORA_KILLS", "3"))
STEPS, START_SECONDS, RUN_SECONDS = 24, 120, 300


def command(config: Path, *options: str) -> list[str]:
    return ["-m", "lora_trainer", "train", "--config", str(config), *options]


def write_config(folder: Path, name: str, pictures: Path, checkpoint: Path) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(
        yaml.safe_dump(
            dict(
                base_model=str(checkpoint),
                train_data_dir=str(pictures),
                output_name=name,
                output_dir=str(folder / f"{name} out"),
                resolution=64,
                batch_size=2,
                max_train_steps=STEPS,
                lora_rank=8,
                lora_dropout=0.1,
                mirror=True,
                random_crop=True,
                save_state_steps=1,
                save_steps=10,
                save_precision="fp32",
                learning_rate=1e-3,
                preview=False,
            )
        ),
        encoding="utf-8",
    )
    return path


def kill_at_random(process: Process, job: Path, draws: random.Random) -> int:
    """Kill a process, mostly while it trains; returns its exit status. One that ends before is left
    to end.
    """
    deadline = time.monotonic() + START_SECONDS
    if draws.random() < 0.85:
        states = {path.name for path in job.glob("state/step-*")}
        while (
            process.poll() is None
            and {path.name for path in job.glob("state/step-*")} == states
            and time.monotonic() < deadline
        ):
            time.sleep(0.002)
    try:
        return process.wait(draws.random() * 1.5)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        return process.wait()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from lora_trainer.demo.checkpoint import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def test_killed_and_resumed_runs_end_as_unbroken_ones(tmp_path, pictures, checkpoint):
    whole = start(command(write_config(tmp_path, "whole", pictures, checkpoint)), folder=REPOSITORY)
    said, _ = whole.communicate(RUN_SECONDS)
    assert whole.returncode == 0, said
    wanted, draws = load_file(tmp_path / "whole out" / "whole.safetensors"), random.Random(KILLS)
    killed = in_saves = runs = 0
    while killed < KILLS or not runs:
        runs += 1
        config, job, first, alone = (
            write_config(tmp_path, f"run{runs}", pictures, checkpoint),
            tmp_path / f"run{runs} out" / "train_lora" / "jobs" / "1",
            True,
            0,
        )
        while True:
            process = start(command(config, *([] if first else ["--resume"])), folder=REPOSITORY)
            status = (
                kill_at_random(process, job, draws)
                if killed < KILLS and alone < 8
                else process.wait(RUN_SECONDS)
            )
            said = process.stdout.read().decode("utf-8", "replace")
            process.stdout.close()
            if status == 0:
                break
            if status == -signal.SIGKILL:
                killed, alone = killed + 1, alone + 1
                in_saves += any(job.glob("state/.*.tmp"))
                first = first and not job.exists()
            else:
                assert "There is nothing to resume" in said, (
                    said
                )  # killed before the job was written down
                first = True
        found = load_file(tmp_path / f"run{runs} out" / f"run{runs}.safetensors")
        assert found.keys() == wanted.keys() and all(
            torch.equal(found[name], wanted[name]) for name in wanted
        ), f"run {runs} differs after {alone} kills"
        assert (
            not list(job.glob("state/.*.tmp"))
            and (job / "metrics.csv").read_text().count("\n") == STEPS + 1
        )
    print(
        f"\n{killed} kills in {runs} runs, {in_saves} of them in the middle of a save; all LoRAs as"
        " that of the unbroken run"
    )
