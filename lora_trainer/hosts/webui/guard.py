"""Who may use the extension's API, as the WebUI decides for its own API and page, and which folders
requests may name.
"""

import base64
import binascii
import hmac
from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI, HTTPException
from modules import shared
from starlette.requests import HTTPConnection

from ...base.contracts import Host


def make_guard(app: FastAPI) -> Callable[[HTTPConnection], None]:
    """Return a FastAPI dependency that lets in who the WebUI would: by --api-auth, by the login of
    --gradio-auth, or everyone where neither is set.
    """
    has_api_auth = bool(shared.cmd_opts.api_auth)
    credentials = [entry.encode() for entry in (shared.cmd_opts.api_auth or "").split(",") if entry]

    def guard(connection: HTTPConnection) -> None:
        has_login = getattr(app, "auth", None) is not None
        if not has_api_auth and not has_login:
            return
        cookie = connection.cookies.get("access-token") or connection.cookies.get(
            "access-token-unsecure"
        )
        if has_login and cookie is not None and app.tokens.get(cookie) is not None:
            return
        given = _basic(connection.headers.get("authorization", ""))
        # all are compared, so that the time tells nothing
        matches = [hmac.compare_digest(given, known) for known in credentials]
        if given and any(matches):
            return
        raise HTTPException(
            401,
            "Log in to the WebUI, or send the user and password of --api-auth.",
            headers={"WWW-Authenticate": "Basic"} if has_api_auth else None,
        )

    return guard


def _basic(header: str) -> bytes:
    """Return `user:password` of an HTTP Basic header (RFC 7617), or nothing."""
    kind, _, encoded = header.partition(" ")
    try:
        return base64.b64decode(encoded, validate=True) if kind.lower() == "basic" else b""
    except (binascii.Error, ValueError):
        return b""


def is_local() -> bool:
    """Tell whether only this machine reaches the WebUI."""
    return not shared.cmd_opts.webui_is_non_local


def allowed_roots(host: Host) -> list[Path]:
    """Return the folders that requests may name where not everything may be named."""
    allowed = getattr(shared.cmd_opts, "train_lora_allowed_dirs", None) or ()
    return [host.data_dir, host.lora_dir, *(Path(folder).absolute() for folder in allowed)]
