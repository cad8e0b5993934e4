"""Random numbers of a run: a generator for each purpose and number (such as a step), so that a run
can be repeated, and resumed anywhere.
"""

import hashlib

import torch


def generator(seed: int, purpose: str, number: int = 0) -> torch.Generator:
    """Return a CPU generator that depends on (seed, purpose, number) alone."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{number}".encode("utf-8", "surrogatepass")).digest()
    seed_63_bit = int.from_bytes(digest[:8], "little") >> 1
    return torch.Generator().manual_seed(seed_63_bit)
