"""The API is asked all that its own OpenAPI document allows, and much that it does not: no request
makes it fail, and every answer is as documented.

A short run in CI; for a long one set TRAIN_LORA_FUZZ_EXAMPLES, the number of requests for each
operation and mode (default 6).
"""

import gc
import io
import os

import pytest

schemathesis = pytest.importorskip(
    "schemathesis", reason="schemathesis is not installed: pip install -r requirements-test.txt"
)

from fastapi import FastAPI  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from PIL import Image  # noqa: E402
from schemathesis import GenerationMode  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)  # noqa: E402

from lora_trainer.base.errors import Refused  # noqa: E402
from lora_trainer.captioning import downloads  # noqa: E402
from lora_trainer.jobs.service import TrainingService  # noqa: E402
from lora_trainer.web import api  # noqa: E402
from tests.conftest import TinyHost  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("default::pytest.PytestUnhandledThreadExceptionWarning"),
]
EXAMPLES = int(os.environ.get("TRAIN_LORA_FUZZ_EXAMPLES", "6"))
PICTURES = ("0.png", "1.png")
THERE = {"name": "cats", "filename": PICTURES[0], "job_id": "1", "captioner": "fixed"}
HOSTILE = (
    "~nobody-has-this-name/x",
    "\\\\server\\share",
    "//server/share",
    "../" * 40 + "etc",
    "a" * 300,
    "/" + "a/" * 2000,
    "a\x00b",
    "\n",
    "con",
    "=1+1",
    "<b>",
)
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """The real service on a small model, without a network. Every path that a request invents has
    to lie in its own folder.
    """
    folder = tmp_path_factory.mktemp("fuzz")
    host = TinyHost(folder / "host")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(downloads, "_download", _no_network)
        service = TrainingService(host, allowed_roots=[folder])
        yield service
        _end_jobs(service)
    service.library.close()
    gc.collect()


@pytest.fixture(scope="module")
def schema(service):
    app = FastAPI()
    api.mount(app, service)
    return schemathesis.openapi.from_asgi("/openapi.json", app)


def _no_network(*args, **kwargs):
    raise downloads.DownloadFailed("no network in tests")


def _end_jobs(service):
    for job in service.jobs():
        service.stop(job["id"])
        service.wait(job["id"], 60)


def _restock(service):
    """Put back what requests removed, so that those to come find something."""
    for job in service.jobs():
        if job["id"] != THERE["job_id"]:
            service.stop(job["id"])
    service.library.create(THERE["name"])
    for number, filename in enumerate(PICTURES):
        buffer = io.BytesIO()
        Image.new("RGB", (64, 48), (90 * number, 60, 200)).save(buffer, "PNG")
        try:
            service.library.add(THERE["name"], filename, buffer.getvalue())
        except Refused:  # turned meanwhile
            pass


def _with_what_is_there(case):
    """Let a request name what there is: most made-up names end at the first door."""
    if isinstance(case.path_parameters, dict):
        case.path_parameters.update(
            {name: value for name, value in THERE.items() if name in case.path_parameters}
        )
    if isinstance(case.body, dict):
        case.body.update(
            {
                name: value
                for name, value in {**THERE, "filenames": list(PICTURES)}.items()
                if name in case.body
            }
        )
        if isinstance(case.body.get("changes"), dict):
            case.body["changes"] = dict(zip(PICTURES, case.body["changes"].values()))
        if isinstance(case.body.get("config"), dict):
            case.body["config"] = {
                **case.body["config"],
                "train_data_dir": THERE["name"],
                "max_train_steps": 2,
                "resolution": 64,
                "preview": False,
            }


def _with_text(value, text):
    """Put a text in the place of every text of a JSON value, its keys excepted."""
    if isinstance(value, dict):
        return {key: _with_text(each, text) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_text(each, text) for each in value]
    return text if isinstance(value, str) else value


def test_no_request_makes_it_fail(service, schema):
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 30
    failed, asked = [], 0
    for operation in operations:
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            _restock(service)
            try:
                asked += _ask(operation, mode)
            except Exception as error:  # all that fail are told, not only the first
                failed.append(
                    f"{operation.label} ({mode.value}): {type(error).__name__}: {str(error)[:1500]}"
                )
    print(f"{asked} requests to {len(operations)} operations")
    assert not failed, "\n\n".join(failed)


def _ask(operation, mode):
    asked = 0

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=EXAMPLES <= 20,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        case=operation.as_strategy(generation_mode=mode),
        hostile=st.sampled_from((None, None, *HOSTILE)),
        there=st.booleans(),
    )
    def ask(case, hostile, there):
        nonlocal asked
        asked += 1
        if (
            hostile
            and isinstance(case.body, (dict, list))
            and case.media_type == "application/json"
        ):
            case.body = _with_text(case.body, hostile)
        if there:
            _with_what_is_there(case)
        answer = case.call()
        assert answer.status_code < 500 or answer.status_code == 507, (
            f"{case.as_curl_command()}\n{answer.text}"
        )
        case.validate_response(answer, checks=CHECKS)

    try:
        ask()
    except Exception as error:
        if type(error).__name__ == "Unsatisfiable":  # an operation that cannot be asked wrongly
            return asked
        raise
    return asked
