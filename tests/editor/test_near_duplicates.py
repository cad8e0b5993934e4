"""Pictures that look nearly the same are found as by comparing each with each."""

from lora_trainer.editor.near_duplicates import Looks, near_duplicates


def test_near_duplicates_are_those_of_comparing_each_with_each():
    import random

    draws = random.Random(3)
    base = [draws.randbytes(8) for _ in range(12)]
    findings = {}
    for number in range(600):
        bits = bytearray(base[number % 12])
        bits[draws.randrange(8)] ^= 1 << draws.randrange(8)
        colour = bytes([20 * (number % 5)] * 192)
        findings[f"{number:03}"] = Looks(bytes(bits), colour)
    found = near_duplicates(findings)

    def alike(one, other):
        different = sum((a ^ b).bit_count() for a, b in zip(one.hash, other.hash))
        return different <= 12 and abs(one.mosaic[0] - other.mosaic[0]) <= 20

    for name in ("000", "300", "599"):
        assert (
            found.get(name, [])
            == [
                other
                for other in findings
                if other != name and alike(findings[name], findings[other])
            ][:12]
        )
