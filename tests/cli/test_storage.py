"""The command that says what the disk holds, and clears it."""

from lora_trainer.cli import main
from tests.cli.test_train import make_host


def test_the_command_says_what_there_is_and_clears_it(service, host, job, capsys):
    arguments = ["storage", "--data-dir", str(host.data_dir)]
    assert (
        main.main(arguments, make_host=make_host) == 0
        and "training states of finished jobs       1" in capsys.readouterr().out
    )
    assert main.main([*arguments, "--clear", "states"], make_host=make_host) == 0
    out = capsys.readouterr().out
    assert (
        "removed 1 (" in out
        and "training states of finished jobs       0" in out
        and not service.job(job["id"])["resumable"]
    )
    assert (
        main.main(["storage", "--data-dir", str(host.data_dir / "nothing")], make_host=make_host)
        == 1
    )
