"""Who gets into a real WebUI: pages of other sites where it has --cors-allow-origins, foreign host
names, and proxies with --subpath.
"""

import http.client
import json
from urllib.parse import urlsplit

import pytest

V1, EVIL = "/train-lora/v1", "https://evil.example"


@pytest.fixture(scope="module")
def ask(start_webui, tmp_path_factory):
    """Return `ask(method, path, body, **headers)` of a WebUI with both flags, which gives status
    and text.
    """
    with start_webui(
        tmp_path_factory.mktemp("doors"), flags=("--cors-allow-origins", EVIL, "--subpath", "sd")
    ) as webui:

        def asked(method, path, body=None, **headers):
            connection = http.client.HTTPConnection(urlsplit(webui.address).netloc, timeout=60)
            headers = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(
                method,
                path,
                None if body is None else json.dumps(body),
                {"Content-Type": "application/json", **headers},
            )
            answer = connection.getresponse()
            text = answer.read().decode()
            connection.close()
            return answer.status, text

        yield asked


@pytest.mark.parametrize("headers", [dict(Sec_Fetch_Site="cross-site"), {}])
def test_a_page_that_cors_lets_read_does_not_write_as_if_through_a_proxy(ask, headers):
    status, text = ask(
        "POST",
        f"{V1}/datasets",
        {"name": "theirs"},
        Origin=EVIL,
        X_Forwarded_Host="evil.example",
        **headers,
    )
    assert status == 403 and "another site" in text
    assert "theirs" not in ask("GET", f"{V1}/datasets")[1]


def test_under_a_foreign_name_no_folder_elsewhere_is_named(ask, tmp_path):
    for path, expected in ((str(tmp_path), 403), (None, 201)):
        body = {"name": "foreign", **({"path": path} if path else {})}
        assert (
            ask(
                "POST",
                f"{V1}/datasets",
                body,
                Host="evil.example:7860",
                Origin="http://evil.example:7860",
            )[0]
            == expected
        )
    assert ask("POST", f"{V1}/datasets", {"name": "own", "path": str(tmp_path)})[0] == 201


def test_the_api_answers_whether_a_proxy_strips_the_subpath_or_not(ask):
    for before in ("", "/sd"):
        assert ask("GET", f"{before}{V1}/status")[0] == 200
        assert ask("POST", f"{before}{V1}/plan", {"config": {}})[0] == 200
        assert ask("PUT", f"{before}{V1}/status")[0] == 405
