"""The request guard: from which site, of which kind and how large a request may be, checked before
its body is read. Who may ask is the host's guard.

api.py asks for every route; each check raises HTTPException or `Refused`.
"""

import ipaddress
import socket
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from fastapi import HTTPException
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection, Request

from ..base.errors import ErrorCode, Refused

LARGEST_JSON_BYTES = 20_000_000
LARGEST_FORM_BYTES = 1_000_000_000
LARGEST_FORM_TEXT_BYTES = 8_000_000  # names, headers and fields of a form, which are kept in memory
MOST_FILES = 1000  # of a form
MOST_FIELDS = 20
Guard = Callable[[HTTPConnection], None]
"""A host's guard: raises HTTPException for a request or WebSocket that may not ask."""
READING = ("GET", "HEAD", "OPTIONS")
HEADERS = {  # of every response
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def check_change(request: Request) -> None:
    """Check a request that may change something. Raises HTTPException (403, 415)."""
    if request.method not in READING:
        refuse_other_sites(request)
        refuse_other_content_types(request)


def refuse_other_sites(connection: HTTPConnection) -> None:
    """Refuse what a page of another site asks on behalf of somebody who is logged in here. Raises
    HTTPException (403).

    Browsers say where a request comes from by Sec-Fetch-Site, which then decides, or (over http) at
    least by Origin; one with neither is not a browser's.
    """
    site, origin = connection.headers.get("sec-fetch-site"), connection.headers.get("origin")
    if site in ("same-origin", "none") or (site is None and origin is None):
        return
    if site is not None or _host_of(origin) not in _own_hosts(connection):
        raise HTTPException(
            403,
            "This request comes from another site. Behind a proxy, let it pass on the header Host"
            " or X-Forwarded-Host.",
        )


def foreign_name(connection: HTTPConnection) -> str:
    """Return the host name that a request asked for if it is not this machine's, else "".

    A page of another site gets here under its own name by DNS rebinding, as do people through a
    tunnel. No page can do so under an address: whoever asks for one is connected to that one.
    """
    host = connection.headers.get("host", "")
    return "" if not host or _is_own_name(_without_port(host)) else host[:100]


def refuse_embedding(request: Request) -> None:
    """Refuse a picture to a page of another site, whose `<img>` would have it decoded here. A
    person who follows a link to it gets it.
    """
    if request.headers.get("sec-fetch-dest") != "document":
        refuse_other_sites(request)


def refuse_other_content_types(request: Request) -> None:
    """Take JSON and uploads only: a page of another site can send other content types without a
    CORS preflight. Raises HTTPException (415).
    """
    if _content_type(request) not in ("application/json", "multipart/form-data") and _has_body(
        request
    ):
        raise HTTPException(
            415,
            "Send JSON with the header Content-Type: application/json, or files as"
            " multipart/form-data.",
        )


def limited(request: Request) -> Request:
    """Return the request with a limit on its body. Raises `Refused` (code "too_large") at once when
    its header says a larger length.
    """
    most = (
        LARGEST_FORM_BYTES
        if _content_type(request) == "multipart/form-data"
        else LARGEST_JSON_BYTES
    )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 15 or int(length) > most):
        raise _too_large(most)
    return _Limited(request.scope, _counted(request.receive, most))


class _Limited(Request):
    """A request whose form is read with limits."""

    async def form(
        self, **limits: Any
    ) -> FormData:  # FastAPI's own limits differ between its versions
        if _content_type(self) != "multipart/form-data":
            return FormData()
        try:
            return await _FormParser(
                self.headers, self.stream(), max_files=MOST_FILES, max_fields=MOST_FIELDS
            ).parse()
        except MultiPartException as error:
            raise HTTPException(400, error.message) from error


class _FormParser(MultiPartParser):
    """Starlette's, with an end to what is kept in memory, which old versions lack
    (CVE-2024-47874).
    """

    _text_bytes = 0

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        super().on_header_field(data, start, end)

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        super().on_header_value(data, start, end)

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._current_part.file is None:
            self._count(end - start)
        super().on_part_data(data, start, end)

    def _count(self, size_bytes: int) -> None:
        self._text_bytes += size_bytes
        if self._text_bytes > LARGEST_FORM_TEXT_BYTES:
            raise HTTPException(
                413,
                f"The fields of this form are larger than {LARGEST_FORM_TEXT_BYTES // 1_000_000} MB"
                " together.",
            )


def _counted(receive: Callable[[], Awaitable[Any]], most: int) -> Callable[[], Awaitable[Any]]:
    received = 0

    async def counted() -> Any:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > most:
            # while a body is read FastAPI lets only HTTPException out
            raise HTTPException(413, _too_large(most).message)
        return message

    return counted


def _too_large(most: int) -> Refused:
    return Refused(
        f"The request is larger than {most // 1_000_000} MB. Send it in parts.",
        code=ErrorCode.TOO_LARGE,
    )


def _content_type(request: Request) -> str:
    header = request.headers.get("content-type", "")
    content_type = header.partition(";")[0].strip().lower()
    is_json = content_type.startswith("application/") and content_type.endswith("+json")
    return "application/json" if is_json else content_type


def _has_body(request: Request) -> bool:
    return (
        "transfer-encoding" in request.headers or request.headers.get("content-length", "0") != "0"
    )


def _host_of(origin: str) -> str | None:
    try:
        return _plain(urlsplit(origin).netloc)
    except ValueError:
        return None


def _own_hosts(connection: HTTPConnection) -> set[str | None]:
    names = ["host"]
    if not _others_may_set_headers(connection):
        names.append("x-forwarded-host")
    hosts = ",".join(connection.headers.get(name, "") for name in names)
    return {_plain(host) for host in hosts.split(",")} - {None}


def _others_may_set_headers(connection: HTTPConnection) -> bool:
    """Tell whether CORS lets pages of other sites send headers of their choice, so that a proxy's
    cannot be believed. Pages cannot set the headers of a WebSocket.
    """
    layers = getattr(connection.scope.get("app"), "user_middleware", [])
    settings = [
        getattr(layer, "kwargs", None) or getattr(layer, "options", {})
        for layer in layers
        if layer.cls is CORSMiddleware
    ]
    return connection.scope["type"] == "http" and any(
        each.get("allow_origins") or each.get("allow_origin_regex") for each in settings
    )


def _without_port(host: str) -> str:
    name, colon, port = host.strip().lower().rpartition(":")
    return name if colon and port.isdecimal() else host.strip().lower()


def _is_own_name(name: str) -> bool:
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
        return True
    except ValueError:
        own = socket.gethostname().lower()
        name = name.removesuffix(".")
        return name in ("localhost", own, f"{own}.local") or name.endswith(".localhost")


def _plain(host: str) -> str | None:
    """Return a host as it can be compared: lower case, without the default port; None
    for nothing.
    """
    return host.strip().lower().removesuffix(":80").removesuffix(":443") or None
