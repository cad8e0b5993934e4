"""Error codes: each raise site names one of the enumeration, and each has its HTTP status."""

import ast
from pathlib import Path

import pytest

from lora_trainer.base.errors import ErrorCode, Refused

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "lora_trainer").rglob("*.py"))


def test_a_refusal_has_a_code_of_the_enumeration():
    assert Refused("no").code is ErrorCode.REFUSED
    assert Refused("no", code=ErrorCode.BUSY).code == "busy"
    with pytest.raises(ValueError):
        Refused("no", code="nonsense")


@pytest.mark.parametrize(
    "code, status",
    [("busy", 409), ("not_found", 404), ("disk_full", 507), ("too_large", 413), ("twice", 422)],
)
def test_a_code_has_its_http_status(code, status):
    assert ErrorCode(code).status == status and f"{ErrorCode(code)}" == code


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_refusal_names_its_code_by_the_enumeration(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            codes = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
            for code in codes:
                assert not isinstance(code, ast.Constant), f"line {node.lineno}: {code.value!r}"
                if isinstance(code, ast.Attribute) and ast.unparse(code.value) == "ErrorCode":
                    assert code.attr in ErrorCode.__members__
