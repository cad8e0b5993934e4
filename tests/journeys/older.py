"""Run a code tree as users run it, and move data of older versions to where a test is."""

import contextlib
import io
import json
import os
import shutil
import socket
import sqlite3
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.support.processes import REPOSITORY, Process, start

PACKAGE = Path(os.environ.get("TRAIN_LORA_PACKAGE", REPOSITORY))  # the code under test
COMMAND = ["-m", "lora_trainer"]
API = "/train-lora/v1"
FIXTURES = REPOSITORY / "tests" / "fixtures" / "older_data"
PLACE = "/older-data"  # stands in all files for the folder that they were made in
VARIES = "<varies>"
TEXTS = (".yaml", ".yml", ".json", ".toml", ".csv", ".txt", ".jsonl")
SECONDS = 180

MANY = """
import contextlib, io, json, runpy, sys
said = []
for arguments in json.loads(sys.argv[1]):
    sys.argv, text = ["lora_trainer", *arguments], io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            runpy.run_module("lora_trainer", run_name="__main__", alter_sys=True)
            status = 0
        except SystemExit as end:
            status = end.code or 0
    said.append([status, text.getvalue()])
print("\\0" + json.dumps(said))
"""


# --- Running --------------------------------------------------------------------------------------


def world(package: Path = PACKAGE) -> dict[str, str]:
    """Return the environment in which a code tree runs."""
    places = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    told = {"PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    return {**os.environ, **told, "PYTHONIOENCODING": "utf-8", "GRADIO_ANALYTICS_ENABLED": "False"}


def command(*arguments: Any, folder: Path, package: Path = PACKAGE) -> str:
    """Run a command; return what it says. Raises AssertionError where it fails."""
    return ended(begin(*arguments, folder=folder, package=package))


def ended(process: Process) -> str:
    """Wait until a command has ended; return what it says. Raises AssertionError where it fails."""
    said = process.communicate(timeout=SECONDS)[0].decode("utf-8", "replace")
    assert process.returncode == 0, said
    return said


def begin(*arguments: Any, folder: Path, package: Path = PACKAGE) -> Process:
    """Start a command and leave it running."""
    line = [*COMMAND, *map(str, arguments)]
    return start(line, folder=folder, env=world(package), code=package)


def commands(*lines: list[str], folder: Path, package: Path = PACKAGE) -> list[tuple[int, str]]:
    """Run several commands in one process, which is faster; return their statuses and words."""
    arguments = ["-c", MANY, json.dumps(lines)]
    text = ended(start(arguments, folder=folder, env=world(package), code=package))
    said = json.loads(text.rpartition("\0")[2])
    return [(status, text) for status, text in said]


class Page:
    """The page of a code tree, served by a process of its own, and asked over HTTP."""

    def __init__(self, process: Process, address: str) -> None:
        self.process, self._address = process, address

    def get(self, path: str) -> Any:
        return self._ask("GET", path)

    def send(self, method: str, path: str, body: Any = None) -> Any:
        """Send JSON; return the answer, also that of a refusal."""
        data = json.dumps(body if body is not None else {}).encode()
        return self._ask(method, path, data, "application/json")

    def do(self, method: str, path: str, body: Any = None) -> Any:
        """Send JSON; return the answer. Raises AssertionError for a refusal."""
        answer = self.send(method, path, body)
        assert "refusal" not in answer, (path, answer)
        return answer

    def upload(self, path: str, files: Mapping[str, bytes], field: str = "files") -> Any:
        """Send files as a form does."""
        border, form = uuid.uuid4().hex, io.BytesIO()
        for name, data in files.items():
            head = f'form-data; name="{field}"; filename="{name}"\r\n'
            form.write(f"--{border}\r\nContent-Disposition: {head}\r\n".encode() + data + b"\r\n")
        form.write(f"--{border}--\r\n".encode())
        return self._ask("POST", path, form.getvalue(), f"multipart/form-data; boundary={border}")

    def until(self, job_id: str, *states: str) -> dict[str, Any]:
        """Wait until a job is in one of these states; return it."""
        deadline = time.monotonic() + SECONDS
        while (job := self.get(f"/jobs/{job_id}"))["state"] not in states:
            assert time.monotonic() < deadline, job
            time.sleep(0.1)
        return job

    def _ask(self, method: str, path: str, data: bytes | None = None, kind: str = "") -> Any:
        path = path if path == "/openapi.json" else API + urllib.parse.quote(path, safe="/?=&")
        headers = {"Content-Type": kind} if kind else {}
        request = urllib.request.Request(self._address + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return _read(answer.headers.get_content_type(), answer.read())
        except urllib.error.HTTPError as refusal:
            with refusal:
                return {"status": refusal.code, "refusal": json.loads(refusal.read())}


def _read(kind: str, data: bytes) -> Any:
    return json.loads(data) if kind == "application/json" else data.decode("utf-8")


@contextlib.contextmanager
def page_of(home: Path, checkpoint: Path, *, package: Path = PACKAGE) -> Iterator[Page]:
    """Serve the page with an output folder; the process is killed at the end, as by a power cut."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--checkpoint", checkpoint, "--output", home, "--port", port]
    with open(home.parent / f"{home.name}.log", "ab") as log:
        line = [*COMMAND, "ui", *map(str, options)]
        process = start(line, folder=home.parent, env=world(package), code=package, output=log)
    page = Page(process, f"http://127.0.0.1:{port}")
    try:
        _wait_for(page, Path(log.name))
        yield page
    finally:
        process.kill()
        process.wait()


def _wait_for(page: Page, log: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        assert page.process.poll() is None and time.monotonic() < deadline, log.read_text("utf-8")
        with contextlib.suppress(OSError):
            page.get("/status")
            return
        time.sleep(0.1)


# --- Data that were made elsewhere ----------------------------------------------------------------


def laid_out(folder: Path) -> Path:
    """Copy the stored data into an empty folder, as if they had been made there."""
    shutil.copytree(FIXTURES, folder)
    move(folder, PLACE, folder.as_posix())
    return folder


def move(folder: Path, old: str, new: str) -> None:
    """Replace a path in all files of a folder: texts, databases and headers of tensor files."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.suffix in TEXTS:
            path.write_bytes(path.read_bytes().replace(old.encode(), new.encode()))
        elif path.suffix == ".sqlite3":
            _move_in_database(path, old, new)
        elif path.suffix == ".safetensors":
            _move_in_header(path, old, new)


def _move_in_database(path: Path, old: str, new: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("pragma journal_mode=delete")
        tables = database.execute("select name from sqlite_master where type = 'table'").fetchall()
        for (table,) in tables:
            for column in [row[1] for row in database.execute(f"pragma table_info({table})")]:
                database.execute(
                    f"update {table} set {column} = replace({column}, ?, ?) "
                    f"where typeof({column}) = 'text' and instr({column}, ?)",
                    (old, new, old),
                )
        database.commit()
        database.execute("vacuum")


def _move_in_header(path: Path, old: str, new: str) -> None:
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].replace(old.encode(), new.encode()).rstrip(b" ")
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])


# --- Answers --------------------------------------------------------------------------------------


def without_place(answer: Any, folder: Path) -> Any:
    """Return an answer with this folder's name replaced, as it is stored."""
    return json.loads(json.dumps(answer, ensure_ascii=False).replace(folder.as_posix(), PLACE))


def stable(one: Any, other: Any) -> Any:
    """Return what two answers have in common; what differs between them is marked."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return {key: stable(one[key], other[key]) for key in one}
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [stable(*pair) for pair in zip(one, other)]
    return one if one == other else VARIES


def differences(wanted: Any, found: Any, at: str = "") -> Iterator[str]:
    """Say where an answer is not as it was; further keys are nobody's loss."""
    if wanted == VARIES:
        return
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key in wanted:
            if key not in found:
                yield f"{at}/{key} is missing"
            else:
                yield from differences(wanted[key], found[key], f"{at}/{key}")
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        for number, pair in enumerate(zip(wanted, found)):
            yield from differences(*pair, f"{at}/{number}")
    elif wanted != found:
        yield f"{at} was {wanted!r} and is {found!r}"
