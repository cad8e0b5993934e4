"""`train` from the command line: its own job only, Ctrl-C, and going on with --resume after a stop
or a kill.
"""

import os
import signal
import textwrap
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from lora_trainer.base.errors import Stopped
from lora_trainer.cli import main
from lora_trainer.cli import train as train_command
from lora_trainer.jobs.store import JobStore
from tests.conftest import TinyHost
from tests.support.processes import start

ROOT = Path(__file__).parents[2]
PROGRAM = """
    import sys, time
    from lora_trainer.cli import main as cli
    from tests.cli.test_train import make_host
    def slow_host(**folders):
        host = make_host(**folders)
        predict = host.model.predict
        host.model.predict = lambda *arguments: (time.sleep(0.06), predict(*arguments))[1]
        return host
    sys.exit(cli.main(sys.argv[1:], make_host=slow_host))
"""


def make_host(*, checkpoint, lora_dir, data_dir):
    host = TinyHost(Path(data_dir) / f"unused-{time.time_ns()}")
    host.lora_dir, host.data_dir = Path(lora_dir), Path(data_dir)
    host.lora_dir.mkdir(parents=True, exist_ok=True)
    return host


@pytest.fixture
def config(settings, tmp_path):
    """Write a settings file, with changes; returns its path."""

    def write(**changes):
        values = {
            **settings,
            "base_model": "tiny.safetensors",
            "output_dir": str(tmp_path / "output"),
            "max_train_steps": 12,
            "preview": False,
            **changes,
        }
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        return str(tmp_path / "run.yaml")

    return write


@pytest.fixture
def jobs(tmp_path):
    path = tmp_path / "output" / "train_lora" / "jobs.sqlite3"
    return lambda: [row.as_dict() for row in JobStore(path).newest()]


def train(*arguments):
    return main.main(["train", "--config", *arguments], make_host=make_host)


def interrupted(config, act, *, every=3, **changes):
    """Train in another process, do something to it after some steps, and return its exit status and
    what it said.
    """
    path = config(max_train_steps=200, save_state_steps=every, **changes)
    program = ["-c", textwrap.dedent(PROGRAM), "train", "--config", path]
    with start(program, folder=ROOT) as process:
        states = Path(path).parent / "output" / "train_lora" / "jobs" / "1" / "state"
        deadline = time.monotonic() + 60
        while not any(int(file.stem[5:]) >= every for file in states.glob("step-*.safetensors")):
            assert time.monotonic() < deadline and process.poll() is None, process.stdout.read()
            time.sleep(0.02)
        act(process)
        said = process.communicate(60)[0].decode("utf-8")
        return process.returncode, said


def test_it_trains_and_the_name_is_taken_then(config, jobs, capsys):
    assert train(config()) == 0
    assert "12 steps" in capsys.readouterr().out and [job["state"] for job in jobs()] == [
        "finished"
    ]
    assert train(config()) == 1 and "exists already" in capsys.readouterr().err and len(jobs()) == 1


def test_help_says_each_spelling_and_default_once(capsys):
    with pytest.raises(SystemExit):
        main.main(["train", "--help"], make_host=make_host)
    options = dict(
        part.split(" ", 1)
        for part in " ".join(capsys.readouterr().out.split()).split(" --")[1:]
        if " " in part
    )
    assert "--resolution INT, --resolution" not in "".join(
        f"--{name} {rest}" for name, rest in options.items()
    )
    assert (
        options["max_train_steps"].endswith("(default: 0)")
        and "(default: off)" in options["mirror"]
        and "(default: on)" in options["enable_bucket"]
    )
    assert "(default: none)" in options["init_lora"]


def test_resolutions_that_are_typed_are_several_whatever_the_file_is(config, jobs):
    assert train(config(network_dim=4, extra_resolutions="256"), "--resolution", "64,96") == 0
    assert [
        (job["config"]["resolution"], job["config"]["extra_resolutions"]) for job in jobs()
    ] == [(64, "96")]


def test_nothing_to_resume(config, jobs, capsys):
    assert train(config(), "--resume") == 1
    assert "nothing to resume" in capsys.readouterr().err and jobs() == []


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_stops_and_says_how_to_go_on(config, jobs, capsys):
    status, said = interrupted(config, lambda process: process.send_signal(signal.SIGINT))
    assert status == 130 and "Stopping after this step" in said and "Traceback" not in said
    (job,) = jobs()
    assert job["state"] == "stopped" and Path(job["output_file"]).is_file()
    assert f"stopped at step {job['step']} of 200" in said and "--resume" in said
    assert train(config(max_train_steps=job["step"] + 4, save_state_steps=3), "--resume") == 0
    assert "job 1 stopped" not in said and "base model tiny" not in said  # the log is for its file
    assert (
        f"job 1 (stopped): going on at step {job['step']} of {job['step'] + 4} with max_train_steps"
        f" {job['step'] + 4}" in capsys.readouterr().out
    )
    assert [(each["id"], each["state"], each["step"]) for each in jobs()] == [
        (job["id"], "finished", job["step"] + 4)
    ]


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_killed_and_gone_on(config, jobs, capsys, pictures):
    status, _ = interrupted(config, lambda process: process.kill())
    assert status == -signal.SIGKILL and jobs()[0]["state"] in ("training", "preparing")
    assert (
        main.main(
            ["jobs", "--data-dir", str(Path(config()).parent / "output" / "train_lora")],
            make_host=make_host,
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "interrupted" in out and "at step " in out
    assert (
        train(config(output_name="another", max_train_steps=2)) == 0
        and "--resume" not in capsys.readouterr().out
    )
    assert train(config(max_train_steps=60, save_state_steps=3, seed=7), "--resume") == 1
    assert "Seed cannot change" in capsys.readouterr().err
    (pictures / "0.txt").write_text("another caption", encoding="utf-8")
    again = config(max_train_steps=60, save_state_steps=3)
    assert train(again, "--resume") == 1 and "0.png" in capsys.readouterr().err
    assert train(again, "--resume-anyway") == 0
    job = jobs()[-1]
    assert (job["id"], job["state"], job["step"]) == (
        "1",
        "finished",
        60,
    ) and "0.png" in capsys.readouterr().out


@pytest.fixture
def ended(settings, tmp_path):
    """Add jobs that have ended, each with its name, state and the step of its training state."""
    store = JobStore(tmp_path / "output" / "train_lora" / "jobs.sqlite3")

    def ended(name, state, step=0):
        job_id = store.add(name, {**settings, "base_model": "tiny.safetensors"})
        store.update(job_id, state=state, error="x" if state == "failed" else None)
        states = tmp_path / "output" / "train_lora" / "jobs" / job_id / "state"
        states.mkdir(parents=True)
        if step:
            (states / f"step-{step:06}.safetensors").write_bytes(b"")
        return job_id

    yield ended
    store.close()


def test_the_same_command_goes_on_where_it_was(config, jobs, capsys, monkeypatch):
    """Stopped, it is gone on with by the same command; settings that may change are taken, others
    are named, and so is changed data.
    """
    stop_after(monkeypatch, 5)
    assert train(config(save_state_steps=1)) == 130
    capsys.readouterr()
    assert train(config(save_state_steps=1, seed=7)) == 1
    said = capsys.readouterr().err
    assert (
        "Job 1, an earlier run of mine, was stopped at step 5. Seed cannot change" in said
        and "--new begins anew" in said
    )
    assert train(config(save_state_steps=1, max_train_steps=14)) == 0
    assert (
        "job 1: going on at step 5 of 14 with max_train_steps 14, as these settings were stopped"
        " there; --new begins anew" in capsys.readouterr().out
    )
    assert [(job["id"], job["state"], job["step"]) for job in jobs()] == [("1", "finished", 14)]


def test_changed_data_is_told_apart_from_changed_settings(
    config, jobs, capsys, monkeypatch, pictures
):
    stop_after(monkeypatch, 5)
    assert train(config()) == 130
    (pictures / "0.txt").write_text("another caption", encoding="utf-8")
    assert train(config()) == 1
    said = capsys.readouterr().err
    assert (
        "the caption of 0.png changed" in said
        and "--resume-anyway goes on all the same, --new begins anew" in said
    )
    assert train(config(), "--new") == 1 and "To replace it: --overwrite" in capsys.readouterr().err
    assert train(config(), "--new", "--overwrite") == 0
    assert [(job["id"], job["state"]) for job in jobs()] == [("2", "finished"), ("1", "stopped")]
    assert (
        train(config()) == 1 and "Job 2 finished it after 12 steps" in capsys.readouterr().err
    )  # not job 1, which is older


def test_a_finished_run_says_what_can_be_done(config, jobs, capsys):
    assert train(config()) == 0
    assert train(config(epochs=9)) == 1
    said = capsys.readouterr().err
    assert (
        "Job 1 finished it after 12 steps. To replace it: --overwrite; to keep both: --output-name"
        " mine-2; to train it longer: --resume" in said
    )
    assert train(config(), "--overwrite") == 0 and train(config(), "--output-name", "other") == 0
    assert [job["name"] for job in jobs()] == ["other", "mine", "mine"]


def test_one_that_another_program_trains_is_left_alone(config, ended, capsys, monkeypatch):
    from lora_trainer.jobs import lock_file

    ended("mine", "training", 3)
    monkeypatch.setattr(lock_file, "is_locked", lambda folder: True)
    assert (
        train(config()) == 1
        and "Job 1 is training mine just now, in another program" in capsys.readouterr().err
    )


def stop_after(monkeypatch, step):
    """Have the next run stopped after so many steps, as by Ctrl-C."""
    from lora_trainer.runs.callbacks import RunCallbacks

    after_step, stopped = RunCallbacks.after_step, []

    def and_stop(callbacks, finished):
        after_step(callbacks, finished)
        if finished.step == step and not stopped:
            stopped.append(callbacks._context.control.stop())

    monkeypatch.setattr(RunCallbacks, "after_step", and_stop)


@pytest.mark.parametrize(
    "number, status, state",
    [("SIGTERM", 143, "interrupted"), ("SIGHUP", 143, "interrupted"), ("SIGINT", 130, "stopped")],
)
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_asked_to_end_it_keeps_its_progress_and_is_the_same_then(
    config, jobs, number, status, state
):
    """Between two states that are due, so that what goes on is what the signal had kept."""

    def act(process):
        time.sleep(0.3)
        process.send_signal(getattr(signal, number))

    ended, said = interrupted(config, act, every=10)
    assert (
        (ended, jobs()[0]["state"]) == (status, state)
        and f"{state} at step" in said
        and "Traceback" not in said
    )
    step = jobs()[0]["step"]
    assert (
        10 < step < 200
        and max(
            int(file.stem[5:])
            for file in Path(config()).parent.glob("output/train_lora/jobs/1/state/step-*")
        )
        == step
    )
    assert (
        train(config(max_train_steps=200))
        == train(config(max_train_steps=200, output_name="whole"))
        == 0
    )
    one, other = (load_file(jobs()[number]["output_file"]) for number in (0, 1))
    assert one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


def test_ctrl_c_leaves_the_preview_out(config, jobs, capsys, monkeypatch):
    drawn = []

    def generate(host, prompt, should_stop, **settings):
        (
            signal.raise_signal(signal.SIGINT) if not drawn else None
        )  # in this thread Python only notes it; the main one answers
        drawn.append(prompt)
        deadline = time.monotonic() + 30
        while not should_stop():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        raise Stopped

    monkeypatch.setattr(TinyHost, "generate", generate)
    assert train(config(preview=True)) == 0
    said = capsys.readouterr()
    assert (
        drawn
        and "Drawing its preview; Ctrl-C leaves it out" in said.out + said.err
        and jobs()[0]["state"] == "finished"
    )


@pytest.mark.parametrize(
    "changes, place", [({}, "logs/mine"), ({"logging_dir": "elsewhere"}, None)]
)
def test_tensorboard_finds_the_logs_of_an_output_folder(
    config, jobs, tmp_path, monkeypatch, changes, place
):
    pytest.importorskip("tensorboardX")
    monkeypatch.chdir(tmp_path)
    assert train(config(**changes)) == 0
    assert list((tmp_path / ("output/logs/mine" if place else "elsewhere/mine")).glob("events*"))


def test_a_finished_run_and_one_without_a_state_are_not(config, capsys, ended):
    ended("mine", "finished", 7)
    ended("mine", "stopped")
    assert train(config(max_train_steps=2)) == 0 and "--resume" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "runs, taken",
    [
        ([("mine", "interrupted", 7), ("mine", "stopped", 0)], 1),
        ([("mine", "interrupted", 7), ("mine", "stopped", 3)], 1),
        ([("mine", "finished", 9), ("mine", "failed", 3)], 2),
        ([("mine", "finished", 9), ("mine", "failed", 0)], 1),
        ([("mine", "stopped", 3), ("mine", "stopped", 3)], 2),
        ([("mine", "stopped", 0), ("other", "stopped", 9)], 1),
    ],
)
def test_resume_takes_what_is_furthest(config, ended, monkeypatch, runs, taken):
    for run in runs:
        ended(*run)
    asked = []
    monkeypatch.setattr(
        train_command,
        "_resume",
        lambda service, config, job, anyway: (
            asked.append(job["id"]) or {**job, "state": "finished"}
        ),
    )
    assert train(config(), "--resume") == 0 and asked == [str(taken)]
    assert train(config(), "--resume", "--job", "1") == train(
        config(), "--job", "1"
    ) == 0 and asked[1:] == ["1", "1"]


def test_a_job_that_is_none_of_this_name(config, ended, capsys):
    ended("other", "stopped", 3)
    for job_id, said in (
        ("1", "Job 1 makes other, and the settings are for mine"),
        ("2", "There is no job '2'"),
        ("x", "There is no job 'x'"),
    ):
        assert train(config(), "--resume", "--job", job_id) == 1 and said in capsys.readouterr().err


def test_jobs_that_wait_for_others_go_on_waiting(config, jobs, settings, tmp_path):
    store = JobStore(tmp_path / "output" / "train_lora" / "jobs.sqlite3")
    store.add("of the page", settings)
    assert train(config()) == 0
    assert [(job["name"], job["state"]) for job in jobs()] == [
        ("mine", "finished"),
        ("of the page", "queued"),
    ]


def test_what_to_type_is_said_behind_what_is_wrong(config, capsys, tmp_path):
    path = config(
        batch_size=20,
        train_text_encoder=True,
        text_encoder_lr=0,
        learning_rate=1e-4,
        max_train_steps=1,
    )
    assert train(path) == 0
    said = capsys.readouterr().out
    assert (
        "so their batches are smaller. (--batch-size 3)" in said
        and "it learns nothing. (--train-text-encoder false)" in said
    )
    options = ["--batch-size", "3", "--train-text-encoder", "false", "--overwrite"]
    assert train(path, *options) == 0
    said = capsys.readouterr().out
    assert "batches are smaller" not in said and "learns nothing" not in said
    said = (train(path), capsys.readouterr().err)
    assert (
        said[0] == 1
        and "to keep both: --output-name mine-2; " in said[1]
        and "--resume and more --max-train-steps" in said[1]
    )


def test_a_run_that_was_cut_off_before_its_progress_was_kept_is_named(config, ended, capsys):
    ended("mine", "interrupted")
    assert train(config(max_train_steps=2)) == 0
    assert (
        "job 1 was cut off before its progress was kept (every 5 minutes), so it begins anew"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "text, says",
    [
        (
            "network_module = 'networks.lora'\nnetwork_args = ['conv_dim=4']\n",
            (
                "kohya's sd-scripts settings. Take over what there is here with python -m"
                " lora_trainer import-settings "
            ),
        ),
        ("lora_rank = 4\nlora_rnak = 8\n", "Did you mean 'lora_rank'?\n"),
    ],
)
def test_another_trainers_file_gets_the_command_that_reads_it(tmp_path, capsys, text, says):
    (tmp_path / "theirs.toml").write_text(text, encoding="utf-8")
    assert (
        main.main(
            [
                "train",
                "--config",
                str(tmp_path / "theirs.toml"),
                "--base-model",
                "tiny.safetensors",
            ],
            make_host=make_host,
        )
        != 0
    )
    assert says in capsys.readouterr().err
