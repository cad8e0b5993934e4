"""Error codes: each raise site names one of the enumeration, and each has its HTTP status."""

import pytest

from lora_trainer.base.errors import ErrorCode, Refused


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
