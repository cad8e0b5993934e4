"""Progress on the command line: a bar on a terminal, few whole lines in a log file or a pipe."""

import io
import subprocess
import sys

from lora_trainer.cli.progress import EVERY_SECONDS, LogLines, Progress, TerminalBar, show_progress
from tests.cli.test_train import ROOT, config, train  # noqa: F401 - a fixture


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def lines_of(updates, *, total=100):
    """Return what `LogLines` writes for updates at times: `(seconds, done, status, notes)`."""
    stream, clock = io.StringIO(), Clock()
    lines = LogLines(total, unit="step", stream=stream, clock=clock)
    for seconds, done, status, notes in updates:
        clock.seconds = seconds
        lines.update(Progress(done, status, notes=notes))
    lines.close()
    return stream.getvalue().splitlines()


def test_a_line_every_ten_seconds():
    updates = [(number / 4, number, "Training", ()) for number in range(121)]  # half a minute
    assert lines_of(updates) == [
        "Training: 0 of 100 steps",
        "Training: 40 of 100 steps",
        "Training: 80 of 100 steps",
        "Training: 120 of 100 steps",
    ]
    assert EVERY_SECONDS == 10


def test_an_event_is_written_at_once_and_once():
    assert lines_of(
        [
            (0, 0, "Encoding picture 1 of 9", ()),
            (1, 0, "Encoding picture 7 of 9", ()),  # another number is no event
            (2, 1, "Training", ()),
            (3, 4, "Training", ("snapshot mine-000004",)),
            (4, 5, "Training", ("snapshot mine-000004",)),
            (5, 6, "Training", ("snapshot mine-000004", "validation loss 0.5000")),
            (6, 9, "Training", ("snapshot mine-000004", "validation loss 0.5000")),
        ]
    ) == [
        "Encoding picture 1 of 9: 0 of 100 steps",
        "Training: 1 of 100 steps",
        "Training: 4 of 100 steps, snapshot mine-000004",
        "Training: 6 of 100 steps, validation loss 0.5000",
        "Training: 9 of 100 steps",  # the last one, whenever that was
    ]


def test_what_is_there_at_the_beginning_is_no_event():
    assert lines_of([(0, 7, "Training", ("snapshot mine-000004",))]) == ["Training: 7 of 100 steps"]


def test_a_terminal_has_a_bar_and_a_pipe_has_lines(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream, kind in ((Terminal(), TerminalBar), (io.StringIO(), LogLines)):
        monkeypatch.setattr(sys, "stderr", stream)
        with show_progress(10, unit="step") as display:
            display.update(Progress(3, "Training", figures="loss 0.1"))
            assert type(display) is kind
    assert stream.getvalue().splitlines() == ["Training: 3 of 10 steps, loss 0.1"]


def test_a_run_into_a_pipe_writes_few_lines(config, capsys):  # noqa: F811
    assert train(config(max_train_steps=40, save_steps=20)) == 0
    said = capsys.readouterr().err
    assert "\r" not in said and "|" not in said
    assert len(said.splitlines()) <= 8 and "finished: 40 of 40 steps" in said.splitlines()[-1]


def test_captions_into_a_pipe_are_few_lines(tmp_path):
    from PIL import Image

    for number in range(30):
        Image.new("RGB", (64, 64), (number * 8, 0, 0)).save(tmp_path / f"{number}.png")
    command = [sys.executable, "-m", "lora_trainer", "auto-label", "--captioner", "fixed"]
    command += ["--input", str(tmp_path), "--data-dir", str(tmp_path / "home")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "\r" not in done.stderr and "30 of 30 pictures" in done.stderr.splitlines()[-1]
