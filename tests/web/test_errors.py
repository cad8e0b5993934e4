"""Whatever a route raises becomes a response with a code, a message and a status."""

import json
import logging

import pytest
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.testclient import TestClient
from starlette.exceptions import HTTPException
from starlette.requests import Request

from lora_trainer.base.errors import ErrorCode, Refused
from lora_trainer.web.errors import error_response

REQUEST = Request({"type": "http", "method": "POST", "path": "/train-lora/v1/jobs", "headers": []})


def answer(error):
    response = error_response(REQUEST, error)
    return response.status_code, json.loads(response.body)["error"]


def test_a_refusal_has_the_status_of_its_code():
    assert answer(Refused("Taken.", field="output_name", code=ErrorCode.NAME_TAKEN)) == (
        ErrorCode.NAME_TAKEN.status,
        {"code": "name_taken", "message": "Taken.", "field": "output_name"},
    )


def test_details_stand_beside_the_message_and_no_field_is_none():
    refused = Refused("No.", code=ErrorCode.BUSY, details={"remedies": [{"label": "Wait"}]})
    assert answer(refused) == (
        409,
        {"code": "busy", "message": "No.", "remedies": [{"label": "Wait"}]},
    )


@pytest.mark.parametrize(
    "status, code", [(401, "not_allowed"), (404, "not_found"), (405, "wrong_method"), (418, None)]
)
def test_what_the_server_itself_refuses_keeps_status_and_headers(status, code):
    error = HTTPException(status, "so it is", headers={"WWW-Authenticate": "Basic"})
    response = error_response(REQUEST, error)
    found = json.loads(response.body)["error"]
    assert response.status_code == status and response.headers["www-authenticate"] == "Basic"
    assert found == {"code": code or ErrorCode.HTTP_ERROR, "message": "so it is"}


def test_a_request_that_is_not_as_expected_says_where():
    app = FastAPI(exception_handlers={RequestValidationError: error_response})

    @app.get("/pictures")
    def pictures(count: int) -> int:
        return count

    response = TestClient(app).get("/pictures?count=many")
    found = response.json()["error"]
    assert response.status_code == 422 and found["code"] == "bad_request"
    assert found["field"] == "count" and "The request is not as expected: " in found["message"]


def test_a_fault_of_ours_is_said_and_its_details_go_to_the_console(caplog):
    with caplog.at_level(logging.ERROR):
        status, found = answer(KeyError("猫"))
    assert status == 500 and found["code"] == "internal" and "KeyError: '猫'" in found["message"]
    assert "POST /train-lora/v1/jobs failed" in caplog.text
