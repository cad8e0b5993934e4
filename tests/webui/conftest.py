"""A real WebUI, started once for the tests of this folder and spoken to by HTTP; where there is
none, they are skipped.

SD_WEBUI_ROOT names its folder (default: ~/stable-diffusion-webui), SD_WEBUI_PYTHON its interpreter
(default: venv/bin/python in it), SD_WEBUI_CHECKPOINTS a folder with the checkpoint to use (default:
the embedded one). Everything it writes goes to a temporary folder.
"""

import base64
import contextlib
import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import pytest
from PIL import Image

REPOSITORY = Path(__file__).parents[2]
START_SECONDS, RUN_SECONDS = 180, 300
FLAGS = (
    "--use-cpu",
    "all",
    "--no-half",
    "--skip-torch-cuda-test",
    "--opt-split-attention",
    "--api",
    "--skip-prepare-environment",
    "--no-download-sd-model",
)
ENDED = ("finished", "stopped", "failed")
ANOTHER = "zz-another"  # the second checkpoint; the WebUI loads the first of the alphabet


class WebUI:
    """A running WebUI. `get` and `post` return parsed JSON; a refusal raises `Answer`."""

    def __init__(self, process: subprocess.Popen, port: int, folder: Path) -> None:
        self.process, self.address, self.folder, self.lora_dir = (
            process,
            f"http://127.0.0.1:{port}",
            folder,
            folder / "lora",
        )

    def get(self, path: str):
        return self._ask(urllib.request.Request(self.address + path))

    def post(self, path: str, body=None):
        return self._ask(
            urllib.request.Request(
                self.address + path,
                data=json.dumps(body or {}).encode(),
                headers={"Content-Type": "application/json"},
            )
        )

    def upload(self, path: str, files: dict[str, bytes]):
        """Send files as a page does: multipart, all under the name `files`."""
        boundary = uuid.uuid4().hex
        parts = [
            b"".join(
                (
                    f'--{boundary}\r\nContent-Disposition: form-data; name="files";'
                    f' filename="{name}"\r\nContent-Type: application/octet-stream\r\n\r\n'.encode(),  # noqa: E501
                    data,
                    b"\r\n",
                )
            )
            for name, data in files.items()
        ]
        body = b"".join(parts) + f"--{boundary}--\r\n".encode()
        return self._ask(
            urllib.request.Request(
                self.address + path,
                data=body,
                headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
            )
        )

    def pictures(self, path: str = "/sdapi/v1/txt2img", **settings) -> list[str]:
        """Draw by the WebUI's own API and return a digest of each picture's pixels."""
        request = dict(seed=1, steps=4, width=64, height=64, sampler_name="Euler") | settings
        answer = self.post(path, request)
        return [
            hashlib.sha256(
                Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB").tobytes()
            ).hexdigest()
            for image in answer["images"]
        ]

    def wait_for(self, job_id: str, condition, seconds: float = 120) -> dict:
        """Wait until a job is as `condition` wants it."""
        deadline = time.monotonic() + seconds
        while not condition(job := self.get(f"/train-lora/v1/jobs/{job_id}")):
            assert time.monotonic() < deadline and job["state"] not in ENDED, (
                f"waited in vain: {job}"
            )
            time.sleep(0.02)
        return job

    def draw(self, prompt: str, *, seed: int = 1, steps: int = 4, **settings) -> str:
        """Draw a picture by the WebUI's own API and return a digest of its pixels."""
        return self.pictures(prompt=prompt, seed=seed, steps=steps, **settings)[0]

    def load(self, name: str) -> dict:
        """Load the checkpoint of this name, and say what the trainer sees."""
        self.post("/sdapi/v1/options", {"sd_model_checkpoint": f"{name}.safetensors"})
        return self.get("/train-lora/v1/status")["model"]

    def start_job(self, **config) -> str:
        return self.post("/train-lora/v1/jobs", {"config": config})["id"]

    def wait(self, job_id: str) -> dict:
        deadline = time.monotonic() + RUN_SECONDS
        while (job := self.get(f"/train-lora/v1/jobs/{job_id}"))["state"] not in ENDED:
            assert time.monotonic() < deadline, f"still {job['state']} after {RUN_SECONDS} s: {job}"
            time.sleep(0.1)
        return job

    def train(self, **config) -> dict:
        return self.wait(self.start_job(**config))

    def _ask(self, request: urllib.request.Request):
        try:
            with urllib.request.urlopen(request, timeout=RUN_SECONDS) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                raise Answer(error.code, error.read().decode("utf-8", "replace")) from None
        return json.loads(text) if text else None


class Answer(Exception):
    """An answer that is not 2xx."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text[:2000]}")
        self.status, self.text = status, text

    @property
    def error(self) -> dict:
        return json.loads(self.text)["error"]


def _root() -> Path:
    root = Path(os.environ.get("SD_WEBUI_ROOT", "~/stable-diffusion-webui")).expanduser()
    if not (root / "launch.py").is_file():
        pytest.skip(
            f"there is no WebUI in {root}; name its folder in SD_WEBUI_ROOT to test inside one"
        )
    return root


def _python(root: Path) -> Path:
    python = Path(os.environ.get("SD_WEBUI_PYTHON", root / "venv" / "bin" / "python"))
    if not python.is_file():
        pytest.skip(f"there is no interpreter {python}; name the WebUI's in SD_WEBUI_PYTHON")
    if subprocess.run([python, "-c", "import peft"], capture_output=True).returncode:
        pytest.skip(f"{python} has no peft; run: {python} -m pip install --no-deps peft==0.13.2")
    return python


def _checkpoints(folder: Path) -> Path:
    if "SD_WEBUI_CHECKPOINTS" in os.environ:
        return Path(os.environ["SD_WEBUI_CHECKPOINTS"])
    from lora_trainer.demo.checkpoint import write_checkpoint

    if folder.exists():
        return folder
    folder.mkdir()
    _write_another(write_checkpoint(folder))
    return folder


def _write_another(checkpoint: Path) -> None:
    """Put a second checkpoint beside the first: the same model with other weights."""
    from safetensors.torch import load_file, save_file

    tensors = {
        name: tensor * 0.9 if name.startswith("model.diffusion_model.out") else tensor
        for name, tensor in load_file(checkpoint).items()
    }
    save_file(tensors, checkpoint.with_name(f"{ANOTHER}.safetensors"))
    checkpoint.with_name(f"{ANOTHER}.yaml").write_bytes(
        checkpoint.with_suffix(".yaml").read_bytes()
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_ready(webui: WebUI, log: Path) -> None:
    """Its own log says when it may be asked: a request in the moment when it puts itself together
    breaks its start.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and webui.process.poll() is None:
        try:
            if (
                b"Startup time" in log.read_bytes()
                and webui.get("/train-lora/v1/status")["model"]["trainable"]
            ):
                return
        except (OSError, Answer):
            pass
        time.sleep(0.5)
    pytest.fail(
        "the WebUI did not start with the extension in it. The end of its"
        f" log:\n{log.read_text(errors='replace')[-5000:]}"
    )


@contextlib.contextmanager
def started(folder: Path, checkpoints: Path | None = None, *, flags: tuple[str, ...] = ()):
    """Start a WebUI whose data lie in a folder, which may be that of one that was killed; it is
    killed at the end. `checkpoints`: other ones than usual; `flags`: more of them.
    """
    root = _root()
    python = _python(root)
    if not (folder / "extensions").exists():
        (folder / "extensions").mkdir()
        for name, target in (
            ("lora-trainer", REPOSITORY),
            ("lora-trainer-probe", Path(__file__).with_name("probe")),
        ):
            (folder / "extensions" / name).symlink_to(target, target_is_directory=True)
    port, log = _free_port(), folder / "log.txt"
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "GRADIO_ANALYTICS_ENABLED": "False",
        "SD_WEBUI_RESTARTING": "1",
    }
    environment.pop("PYTHONPATH", None)
    command = [
        python,
        "launch.py",
        "--port",
        str(port),
        *FLAGS,
        *flags,
        "--data-dir",
        folder,
        "--lora-dir",
        folder / "lora",
        "--ckpt-dir",
        checkpoints or _checkpoints(folder / "checkpoints"),
    ]
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, cwd=root, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            running = WebUI(process, port, folder)
            _wait_until_ready(running, log)
            yield running
        finally:
            process.send_signal(
                signal.SIGKILL
            )  # it holds nothing that must be saved, and Ctrl-C would not end it sooner
            process.wait()


@pytest.fixture(scope="session")
def webui(tmp_path_factory) -> WebUI:
    with started(tmp_path_factory.mktemp("webui")) as running:
        yield running


@pytest.fixture(scope="session")
def start_webui():
    """Return `started`, for tests that need a WebUI of their own; conftest.py cannot be imported by
    name.
    """
    return started


@pytest.fixture
def run(pictures) -> dict:
    """Settings of a run that takes a few seconds and visibly changes what the model draws."""
    return dict(
        train_data_dir=str(pictures),
        output_name="mine",
        overwrite=True,
        resolution=64,
        max_train_steps=6,
        batch_size=2,
        learning_rate=2e-2,
        lora_rank=4,
        preview=False,
    )
