"""Fingerprints of what must be the same when a run is resumed: a base model's weights, picture
files and captions.
"""

import hashlib
from pathlib import Path

import torch

SAMPLES = 64  # of each parameter
BLOCK_BYTES = 1 << 20


def fingerprint_of_weights(module: torch.nn.Module) -> str:
    """Return a digest of every parameter's name, dtype, shape and `SAMPLES` of its numbers.

    Takes milliseconds. It differs between checkpoints, and when a LoRA was left in the weights; it
    is the same on every device. "" for a module on the meta device.
    """
    digest = hashlib.sha256()
    samples = []
    for name, parameter in module.named_parameters():
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        if parameter.is_meta:
            return ""
        flat = parameter.detach().reshape(-1)
        stride = max(1, len(flat) // SAMPLES)
        samples.append(flat[::stride][:SAMPLES].float())
    if samples:
        digest.update(torch.cat(samples).cpu().numpy().tobytes())
    return digest.hexdigest()


def fingerprint_of_file(path: Path) -> str:
    """Return a file's SHA-256; raises OSError."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def fingerprint_of_text(text: str) -> str:
    """Return a text's SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
