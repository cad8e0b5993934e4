"""A LoRA file for tests that read settings out of one: its header is what counts."""

import json
import struct


def lora(**metadata) -> bytes:
    """A LoRA of one layer, with its numbers."""
    header = json.dumps(
        {
            "__metadata__": metadata,
            "lora_unet_x.lora_down.weight": {
                "dtype": "F32",
                "shape": [2, 4],
                "data_offsets": [0, 32],
            },
        }
    ).encode()
    return struct.pack("<Q", len(header)) + header + b"\x00" * 32


TRAINED = lora(
    ss_network_dim="24",
    ss_network_alpha="12.0",
    ss_learning_rate="0.0003",
    ss_network_module="networks.lora",
)
