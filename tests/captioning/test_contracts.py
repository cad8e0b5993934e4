"""What a captioner says of itself before it begins."""

from lora_trainer.captioning.contracts import Readiness


def test_a_download_does_not_keep_from_starting():
    assert (
        Readiness(False, "…", None, "weights").can_start
        and not Readiness(False, "broken").can_start
        and Readiness(True).can_start
    )
