"""Fingerprints tell what changed and nothing else."""

import torch

from lora_trainer.base.fingerprint import fingerprint_of_file, fingerprint_of_weights


def test_weights(host):
    unet = host.model.unet
    before = fingerprint_of_weights(unet)
    assert fingerprint_of_weights(unet) == before
    with torch.no_grad():
        unet.out[2].weight.mul_(1 + 1e-6)
    assert fingerprint_of_weights(unet) != before
    assert fingerprint_of_weights(unet.half()) not in (before, "")
    assert fingerprint_of_weights(unet.to("meta")) == ""


def test_files(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    (tmp_path / "b").write_bytes(b"x" * 2_999_999 + b"y")
    assert fingerprint_of_file(tmp_path / "a") != fingerprint_of_file(tmp_path / "b")
