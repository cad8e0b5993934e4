"""Whom the WebUI's guard lets in: by --api-auth, by a login, or everyone."""

import base64
import importlib
import sys
import types

import pytest
from fastapi import HTTPException
from starlette.requests import HTTPConnection


@pytest.fixture
def webui_guard(monkeypatch):
    """Make the WebUI's guard for what --api-auth says and a login of gradio's, or none."""

    def make(api_auth=None, *, login=False):
        shared = types.SimpleNamespace(cmd_opts=types.SimpleNamespace(api_auth=api_auth))
        monkeypatch.setitem(sys.modules, "modules", types.SimpleNamespace(shared=shared))
        monkeypatch.delitem(sys.modules, "lora_trainer.hosts.webui.guard", raising=False)
        app = types.SimpleNamespace(
            auth={"anna": "a"} if login else None,
            tokens={"token-of-anna": "anna", "token-of-bert": "bert"},
        )
        return importlib.import_module("lora_trainer.hosts.webui.guard").make_guard(app)

    yield make
    sys.modules.pop("lora_trainer.hosts.webui.guard", None)


def lets_in(guard, **headers):
    scope = {
        "type": "http",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    try:
        guard(HTTPConnection(scope))
    except HTTPException as error:
        assert error.status_code == 401
        return False
    return True


def basic(credentials):
    return "Basic " + base64.b64encode(credentials.encode()).decode()


def test_api_auth_asks_for_one_of_its_users(webui_guard):
    guard = webui_guard("anna:secret,bert:other")
    assert lets_in(guard, authorization=basic("anna:secret")) and lets_in(
        guard, authorization=basic("bert:other")
    )
    for wrong in (
        "",
        "anna",
        "anna:",
        "anna:other",
        "bert:secret",
        "anna:secret,bert:other",
        ":",
        "anna:secret ",
    ):
        assert not lets_in(guard, authorization=basic(wrong)), wrong
    for header in (
        "",
        "Basic",
        "Basic !",
        "Basic \u00ff",
        "Bearer anna:secret",
        "Basic anna:secret",
    ):
        assert not lets_in(guard, authorization=header), header
    assert not lets_in(guard) and not lets_in(guard, cookie="access-token=token-of-anna")


def test_a_login_lets_in_each_of_its_users_and_nobody_else(webui_guard):
    guard = webui_guard(login=True)
    assert lets_in(guard, cookie="access-token=token-of-anna") and lets_in(
        guard, cookie="access-token-unsecure=token-of-bert"
    )
    assert (
        not lets_in(guard)
        and not lets_in(guard, cookie="access-token=made-up")
        and not lets_in(guard, authorization=basic("anna:a"))
    )


def test_without_either_everyone_may_ask_and_an_empty_list_lets_nobody_in(webui_guard):
    assert lets_in(webui_guard()) and not lets_in(webui_guard(","), authorization=basic(":"))
