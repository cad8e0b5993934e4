"""install.py: adds only what is missing, never stops a WebUI's start, and makes an environment that
it can mend.
"""

import importlib.metadata
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import install

SCRIPT = Path(install.__file__)


def webui(
    tmp_path: Path, run_pip: str, *, without: str = ""
) -> tuple[subprocess.CompletedProcess, float]:
    """Run install.py as the WebUI does: its own process, its `launch` on the path, no arguments."""
    (tmp_path / "launch.py").write_text(
        f"def run_pip(command, desc=None, live=False):\n    {run_pip}\n"
    )
    hide = (
        "import importlib.util as u; real = u.find_spec; u.find_spec = lambda n, *a: None if n in"
        f" {without.split()!r} else real(n, *a)\n"
    )
    (tmp_path / "sitecustomize.py").write_text(hide if without else "")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env=environment,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done, time.perf_counter() - started


def test_nothing_missing_is_silent_and_fast(tmp_path):
    if any(importlib.util.find_spec(module) is None for module in ("peft", *install.EXPECTED)):
        pytest.skip("this environment lacks a package")
    runs = [webui(tmp_path, "raise SystemExit('pip must not run')") for _ in range(3)]
    assert all(done.returncode == 0 and not done.stderr for done, _ in runs)
    assert min(seconds for _, seconds in runs) < 1


def test_peft_alone_is_added_pinned_and_without_dependencies(tmp_path):
    done, _ = webui(tmp_path, "print('pip', command)", without="peft")
    assert done.returncode == 0
    assert [line for line in done.stdout.splitlines() if line.startswith("pip")] == [
        "pip install --no-deps --retries 1 --timeout 15 peft==0.13.2"
    ]


def test_offline_says_so_and_lets_the_webui_start(tmp_path):
    done, _ = webui(
        tmp_path,
        "raise RuntimeError('stderr: NewConnectionError: Name or service not known')",
        without="peft yaml",
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 1 and not done.stderr
    assert "peft==0.13.2, PyYAML==6.0.1 is missing" in lines[0] and "cannot be reached" in lines[0]
    assert lines[0].endswith("-m pip install --no-deps peft==0.13.2 PyYAML==6.0.1")


def test_without_tensorboard_training_works(tmp_path):
    done, _ = webui(
        tmp_path,
        "raise RuntimeError('stderr: NewConnectionError: Name or service not known')",
        without="tensorboardX",
    )
    assert (
        "tensorboardX==2.6.2.2 is missing" in done.stdout
        and "starts without figures for TensorBoard." in done.stdout
    )


@pytest.mark.skipif(sys.version_info >= (3, 11), reason="newer Pythons read TOML by themselves")
def test_without_tomli_training_works(tmp_path):
    done, _ = webui(
        tmp_path,
        "raise RuntimeError('stderr: NewConnectionError: Name or service not known')",
        without="tomli",
    )
    assert (
        "tomli==2.0.1 is missing" in done.stdout
        and "starts without settings from TOML files." in done.stdout
    )


def versions(monkeypatch, **found: str):
    def version(name):
        if name not in found:
            raise importlib.metadata.PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr(importlib.metadata, "version", version)


@pytest.mark.parametrize(
    ("hub", "pin"),
    [
        ("0.36.2", "peft==0.13.2"),
        ("0.25.0", "peft==0.13.2"),
        ("0.22.2", "peft==0.11.1"),
        ("2.4.0", "peft==0.13.2"),
    ],
)
def test_pin_fits_the_hub_that_is_there(monkeypatch, hub, pin):
    versions(monkeypatch, huggingface_hub=hub)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "peft" else object()
    )
    assert install.missing_packages() == [pin]


def test_a_peft_too_new_for_the_webui_is_told_not_changed(monkeypatch):
    versions(monkeypatch, peft="0.17.1", transformers="4.30.2")
    assert (
        "peft 0.17.1 does not work with transformers 4.30.2; nothing was changed"
        in install.unsuitable_peft()
    )
    versions(monkeypatch, peft="0.13.2", transformers="4.30.2")
    assert install.unsuitable_peft() is None
    versions(monkeypatch, peft="0.21.2", transformers="4.48.1")
    assert install.unsuitable_peft() is None


def test_by_hand_without_arguments_explains_itself(tmp_path):
    done = subprocess.run(
        [sys.executable, "-I", str(SCRIPT)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and "install.py demo" in done.stdout


@pytest.mark.parametrize(
    ("found", "says"),
    [((3, 9), "too old: 3.10 to 3.13 are needed"), ((3, 14), "too new: 3.10 to 3.13")],
)
def test_other_pythons_are_refused(monkeypatch, capsys, found, says):
    monkeypatch.setattr(sys, "version_info", (*found, 1))
    assert install.main(["demo"]) == 1
    error = capsys.readouterr().err
    assert says in error and "install.py demo" in error and len(error.splitlines()) == 1


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A folder with a space in its name, a .venv to be, and a list that needs nothing from a
    network.
    """
    root = tmp_path / "a house"
    root.mkdir()
    requirements = root / "requirements-none.txt"
    requirements.write_text("# nothing\n")
    monkeypatch.setattr(install, "ROOT", root)
    monkeypatch.setattr(install, "VENV", root / ".venv")
    monkeypatch.setattr(
        install, "REQUIREMENTS", {"demo": requirements, "test": requirements, "check": requirements}
    )
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return root


def test_environment_is_made_used_again_and_mended(house, capsys):
    requirements = install.REQUIREMENTS["demo"]
    python = install.ensure_environment(requirements)
    assert install.works(python) and "Making" in capsys.readouterr().out
    assert install.ensure_environment(requirements) == python and capsys.readouterr().out == ""

    requirements.write_text("# nothing, differently\n")
    install.ensure_environment(requirements)
    said = capsys.readouterr().out
    assert "Making" not in said and "Installing" in said

    python.unlink()  # half made, or its Python was removed
    assert (
        install.works(install.ensure_environment(requirements))
        and "Making" in capsys.readouterr().out
    )


def test_included_lists_count(house):
    first = install.REQUIREMENTS["demo"]
    outer = house / "outer.txt"
    outer.write_text(f"-r {first.name}\n")
    before = install.digest_of(outer)
    first.write_text("# changed\n")
    assert install.digest_of(outer) != before


def test_no_network_is_a_sentence_and_is_tried_twice(house, monkeypatch, capsys):
    tries = []
    monkeypatch.setattr(
        install,
        "run_showing_progress",
        lambda command: (
            tries.append(command) or (1, ["Temporary failure in name resolution", "ERROR: x"])
        ),
    )
    monkeypatch.setattr(install, "works", lambda *_: True)
    (house / ".venv").mkdir()
    assert install.main(["demo"]) == 1
    assert (
        len(tries) == 2
        and "The packages could not be installed: the package index cannot be reached"
        in capsys.readouterr().err
    )
    assert not list((house / ".venv").iterdir())


def test_pips_progress_and_last_words_are_caught(tmp_path, capsys):
    script = tmp_path / "pip.py"
    script.write_text(
        "print('Collecting torch')\nprint('Downloading https://x/y/torch-2.0-cp311.whl (889.1"
        " MB)')\nprint('Downloading tiny-1.whl (9 kB)')\nprint('Installing collected packages: a,"
        " b')\nprint('ERROR: No matching distribution')\nraise SystemExit(3)"
    )
    status, said = install.run_showing_progress([sys.executable, str(script)])
    assert capsys.readouterr().out.splitlines() == [
        "  torch-2.0-cp311.whl (889.1 MB)",
        "  unpacking 2 packages",
    ]
    assert status == 3 and install.reason_in(said) == "No matching distribution"


def test_check_runs_every_check_and_tells_of_the_worst(house, monkeypatch):
    calls = []
    monkeypatch.setattr(install, "ensure_environment", lambda requirements: Path("python"))
    monkeypatch.setattr(
        subprocess,
        "call",
        lambda command, **options: calls.append(command[2]) or int(command[3:4] == ["check"]),
    )
    assert install.main(["check"]) == 1
    assert calls == ["ruff", "ruff", "mypy"]


def test_demo_runs_where_the_user_is_and_tests_in_the_house(house, monkeypatch):
    calls = []
    monkeypatch.setattr(install, "ensure_environment", lambda requirements: Path("python"))
    monkeypatch.setattr(
        subprocess, "call", lambda command, **options: calls.append((command, options)) or 7
    )
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    assert install.main(["demo", "--ui"]) == 7 and install.main(["test", "-k", "x"]) == 7
    (demo, demo_options), (tests, tests_options) = calls
    assert (
        demo == ["python", "-m", "lora_trainer", "demo", "--output", "demo-output", "--ui"]
        and "cwd" not in demo_options
    )
    assert (
        demo_options["env"]["PYTHONPATH"] == str(house) and "PYTHONPATH" not in tests_options["env"]
    )
    assert tests == ["python", "-m", "pytest", "-k", "x"] and tests_options["cwd"] == house
