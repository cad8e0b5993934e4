"""Short names for what must not change between the two halves of a run: a base model's weights, a
picture, a caption.
"""

import hashlib
from pathlib import Path

import torch

SAMPLES = 64
_BLOCK = 1 << 20


def fingerprint_of_weights(module: torch.nn.Module) -> str:
    """Return a digest of names, types, shapes and some numbers of every parameter; milliseconds, so
    it can be taken again and again.

    It tells checkpoints apart, and a LoRA's traces in the weights. The same weights on another
    device have the same one.
    """
    digest, samples = hashlib.sha256(), []
    for name, parameter in module.named_parameters():
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        if parameter.is_meta:
            return ""
        flat = parameter.detach().reshape(-1)
        samples.append(flat[:: max(1, len(flat) // SAMPLES)][:SAMPLES].float())
    digest.update(torch.cat(samples).cpu().numpy().tobytes() if samples else b"")
    return digest.hexdigest()


def fingerprint_of_file(path: Path) -> str:
    """Return a file's SHA-256; raises OSError."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def fingerprint_of_text(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
