"""Adds what is missing, and changes nothing that is there.

Run by the WebUI at every start, without arguments. By hand, on a machine without a WebUI:

  python3 install.py demo [--ui] [...]   makes .venv beside this file, trains the embedded example,
                                         leaves demo-output/
  python3 install.py test [...]          makes .venv and runs the tests; what follows goes to pytest
  python3 install.py check               makes .venv and checks format, lint and types

Needs nothing but Python's standard library and lora_trainer/requirements.py.
"""

from __future__ import annotations

import collections
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # portable Pythons leave out the script's own folder

from lora_trainer.requirements import EXPECTED, PEFT, WITHOUT  # noqa: E402

VENV = ROOT / ".venv"
OLDEST, NEWEST = (3, 10), (3, 13)
REQUIREMENTS = {
    "demo": ROOT / "requirements-standalone.txt",
    "test": ROOT / "requirements-test.txt",
    "check": ROOT / "requirements-test.txt",
}
CHECKS = (["ruff", "format", "--check", "."], ["ruff", "check", "."], ["mypy"])

PEFT_FOR_OLD_HUB = "peft==0.11.1"
OLDEST_HUB_FOR_PEFT = (0, 23)
NEWEST_PEFT_FOR_TRANSFORMERS_4_35 = (0, 13, 2)


# --- In a WebUI -----------------------------------------------------------------------------------


def install_for_webui() -> int:
    """Install what is missing without its dependencies; always returns 0, so that the WebUI starts
    in any case.
    """
    missing = missing_packages()
    reason = install_pins(missing) if missing else None
    if reason:
        lost = (
            "without training"
            if set(missing) - set(WITHOUT)
            else " and ".join(WITHOUT[pin] for pin in missing)
        )
        print(
            f"Train LoRA: {', '.join(missing)} is missing and could not be installed ({reason})."
            f' The WebUI starts {lost}. To mend it, run: "{sys.executable}" -m pip install'
            f" --no-deps {' '.join(missing)}"
        )
    remark = None if missing else unsuitable_peft()
    if remark:
        print(f"Train LoRA: {remark}")
    return 0


def missing_packages() -> list[str]:
    """Return the pins of what cannot be imported. Imports nothing itself."""
    hub = installed_version("huggingface_hub")
    is_hub_old = hub is not None and hub < OLDEST_HUB_FOR_PEFT
    needed = {"peft": PEFT_FOR_OLD_HUB if is_hub_old else PEFT, **EXPECTED}
    return [pin for module, pin in needed.items() if importlib.util.find_spec(module) is None]


def unsuitable_peft() -> str | None:
    """Return a warning when the installed peft does not work with the WebUI's transformers; it is
    not changed.
    """
    peft, transformers = installed_version("peft"), installed_version("transformers")
    if (
        peft
        and transformers
        and transformers < (4, 36)
        and peft > NEWEST_PEFT_FOR_TRANSFORMERS_4_35
    ):
        return (
            f"the installed peft {dotted(peft)} does not work with transformers"
            f" {dotted(transformers)}; nothing was changed. "
            f'If training does not start, run: "{sys.executable}" -m pip install --no-deps {PEFT}'
        )
    return None


def install_pins(pins: list[str]) -> str | None:
    """Install pinned packages by the WebUI's own pip call, without waiting long; returns why it
    failed, or None.
    """
    from launch import run_pip

    try:
        run_pip(
            f"install --no-deps --retries 1 --timeout 15 {' '.join(pins)}",
            f"{', '.join(pins)} for Train LoRA",
        )
    except RuntimeError as error:
        return reason_in(str(error).splitlines())
    importlib.invalidate_caches()
    if all(installed_version(pin.split("==")[0]) for pin in pins):
        return None
    return "installing is switched off with --skip-install"


def installed_version(name: str) -> tuple[int, ...] | None:
    """Return the numbers of an installed distribution's version, or None."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


# --- Without a WebUI ------------------------------------------------------------------------------


class Failed(Exception):
    """Something that ends the command, said in one sentence."""


def run_standalone(command: str, arguments: list[str]) -> int:
    """Complete .venv, then run the demo, the tests or the checks in it; return the status."""
    check_python(command)
    python = ensure_environment(REQUIREMENTS[command])
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("PYTHONPATH", "PYTHONHOME", "__PYVENV_LAUNCHER__")
    }
    environment.update(PYTHONNOUSERSITE="1", GRADIO_ANALYTICS_ENABLED="False")
    if command == "test":
        return subprocess.call([str(python), "-m", "pytest", *arguments], cwd=ROOT, env=environment)
    if command == "check":
        commands = [[str(python), "-m", *check] for check in CHECKS]
        statuses = [subprocess.call(each, cwd=ROOT, env=environment) for each in commands]
        return next((status for status in statuses if status), 0)
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.call(
        [str(python), "-m", "lora_trainer", "demo", "--output", "demo-output", *arguments],
        env=environment,
    )


def check_python(command: str) -> None:
    found = sys.version_info[:2]
    if not OLDEST <= found <= NEWEST:
        raise Failed(
            f"This is Python {dotted(found)}, which is too {'old' if found < OLDEST else 'new'}:"
            f" {dotted(OLDEST)} to {dotted(NEWEST)} are needed. Run it with one of those, for"
            f" example: python{dotted(NEWEST)} install.py {command}"
        )
    if sys.maxsize <= 2**32:
        raise Failed(
            "This is a 32-bit Python, for which there is no PyTorch. Install the 64-bit one and run"
            " the same command with it."
        )


def ensure_environment(requirements: Path) -> Path:
    """Return the Python of .venv, with everything of `requirements` installed if it was not."""
    python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = VENV / f".complete-{requirements.stem}"
    wanted = digest_of(requirements)
    if works(python) and stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    if not works(python, "-m", "pip", "--version"):
        make_environment()
    stamp.unlink(missing_ok=True)
    say(
        f"Installing packages for {requirements.name} into {VENV} (PyTorch is several GB; the first"
        " time this takes some minutes)"
    )
    started = time.monotonic()
    install_requirements(python, requirements)
    stamp.write_text(wanted, encoding="utf-8")
    say(f"Installed in {time.monotonic() - started:.0f} s")
    return python


def digest_of(requirements: Path) -> str:
    """Hash a requirement list with the lists it includes."""
    text = requirements.read_text(encoding="utf-8")
    included = [
        digest_of(requirements.with_name(name)) for name in re.findall(r"(?m)^-r\s+(\S+)", text)
    ]
    return hashlib.sha256("\n".join([text, *included]).encode()).hexdigest()


def works(python: Path, *arguments: str) -> bool:
    """Tell whether an environment's Python starts and has a supported version."""
    check = arguments or (
        "-c",
        f"import sys; sys.exit(not {OLDEST} <= sys.version_info[:2] <= {NEWEST})",
    )
    try:
        done = subprocess.run(
            [str(python), *check],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=120,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def make_environment() -> None:
    say(f"Making {VENV} with Python {dotted(sys.version_info[:3])}")
    made = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(VENV)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if made.returncode:
        advice = (
            "Install Debian's package python3-venv and run the same command again"
            if "ensurepip" in made.stdout
            else "Mend that, remove the folder and run the same command again"
        )
        raise Failed(
            f"The folder {VENV} could not be made ({reason_in(made.stdout.splitlines())})."
            f" {advice}."
        )


def install_requirements(python: Path, requirements: Path) -> None:
    """Run pip, tried twice because networks hiccup; raises `Failed` with what it said last."""
    command = [
        str(python),
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--no-input",
        "--progress-bar",
        "off",
        "--prefer-binary",
        "-r",
        str(requirements),
    ]
    for attempt in (1, 2):
        status, said = run_showing_progress(command)
        if status == 0:
            return
        reason = reason_in(said)
        if attempt == 1:
            say(f"That failed ({reason}); trying once more")
            time.sleep(3)
    raise Failed(
        f"The packages could not be installed: {reason}. See to that and run the same command"
        " again; what is there already is kept."
    )


def run_showing_progress(command: list[str]) -> tuple[int, list[str]]:
    """Run pip and show only its milestones; returns its exit status and its last lines."""
    last: collections.deque[str] = collections.deque(maxlen=60)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        for line in process.stdout:
            line = line.strip()
            last.append(line)
            fetched = re.match(
                r"(?:Downloading|Using cached) (?:\S*/)?([^/\s]+) (\([\d.]+ [MG]B\))", line
            )
            if fetched:
                say(f"  {fetched[1]} {fetched[2]}")
            elif line.startswith("Installing collected packages"):
                say(f"  unpacking {line.count(',') + 1} packages")
    return process.returncode, list(last)


def reason_in(lines: list[str]) -> str:
    """Return a short reason for a failure, from pip's last lines."""
    text = "\n".join(lines)
    if re.search(r"No space left|Errno 28", text):
        return "the disk is full"
    if re.search(
        r"NewConnectionError|ConnectionError|ConnectTimeout|ReadTimeout|Read timed out|Name or"
        r" service not known|name resolution|ProxyError|getaddrinfo|"
        r"Network is unreachable|SSLError|Max retries",
        text,
    ):
        return "the package index cannot be reached; is there a network connection?"
    errors = [line for line in lines if line.startswith("ERROR:")]
    candidates = errors or [line for line in lines if line.strip()]
    if not candidates:
        return "it said nothing"
    return candidates[-1].removeprefix("ERROR:").strip().rstrip(".")[:300]


def say(text: str) -> None:
    print(text, flush=True)


def main(arguments: list[str]) -> int:
    if arguments and arguments[0] in REQUIREMENTS:
        try:
            return run_standalone(arguments[0], arguments[1:])
        except Failed as failure:
            print(f"error: {failure}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
    if importlib.util.find_spec("launch") is None:
        print(__doc__)
        return 0 if not arguments else 2
    return install_for_webui()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
