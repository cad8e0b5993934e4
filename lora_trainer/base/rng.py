"""Where every random choice of a run comes from: a generator seeded by (seed, purpose, number), so
that a run can be repeated and resumed.
"""

import hashlib

import torch


def generator(seed: int, purpose: str, number: int = 0) -> torch.Generator:
    """Return a CPU generator that depends on (seed, purpose, number) alone."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{number}".encode("utf-8", "surrogatepass")).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
