"""Settings out of files as users bring them: of a LoRA its header is enough, and what is no
settings file is refused, unread.
"""

import io
import pickle
import struct

import pytest

from lora_trainer.base.errors import Refused
from lora_trainer.jobs import settings_import
from tests.support.trained_lora import TRAINED, lora

KOHYA = (
    b"network_dim = 24\nnetwork_alpha = 12\nunet_lr = 0.0003\nxformers = true\nnetwork_module ="
    b' "networks.lora"\n'
)


def test_a_kohya_file_is_taken_over_and_what_is_not_has_a_reason():
    found = settings_import.read_upload("my cat.toml", io.BytesIO(KOHYA))
    assert (
        found["settings"]["lora_rank"] == 24
        and found["settings"]["learning_rate"] == 0.0003
        and found["filename"] == "my cat.toml"
        and found["source"]
    )
    assert [(left["key"], left["value"]) for left in found["left_out"]] == [
        ("xformers", True)
    ] and found["left_out"][0]["reason"]


def test_the_header_of_a_lora_is_enough():
    length = 8 + struct.unpack("<Q", TRAINED[:8])[0]
    whole, header = (
        settings_import.read_upload("like this.safetensors", io.BytesIO(data))
        for data in (TRAINED, TRAINED[:length])
    )
    assert whole == header and header["settings"]["lora_rank"] == 24


class Trap:
    def __reduce__(self):
        return exec, ("raise SystemExit('it was unpickled')",)


@pytest.mark.parametrize(
    "name, data, code",
    [
        ("model.ckpt", pickle.dumps(Trap()), "unreadable_config"),
        ("lora.pt", pickle.dumps(Trap()), "unreadable_config"),
        ("trap.safetensors", pickle.dumps(Trap()), "unreadable_config"),
        ("trap.yaml", b"!!python/object/apply:os.system ['false']", "unreadable_config"),
        ("x.toml", b"a = = b", "unreadable_config"),
        ("x.json", b"[1]", "unreadable_config"),
        ("x.json", b"\xff\xfe\x00", "unreadable_config"),
        ("short.safetensors", TRAINED[:40], "unreadable_config"),
        ("x.safetensors", b"\xff" * 8 + b"x" * 100, "unreadable_config"),
        ("", b"", "unreadable_config"),
        ("x.toml", b"", "no_settings"),
        ("bare.safetensors", lora(), "no_settings"),
        ("large.toml", b"#" * (settings_import.LARGEST_SETTINGS_BYTES + 1), "too_large"),
    ],
)
def test_what_is_no_settings_file_is_refused(name, data, code):
    with pytest.raises(Refused) as caught:
        settings_import.read_upload(name, io.BytesIO(data))
    assert caught.value.code == code and "/tmp" not in caught.value.message


def test_a_header_that_claims_to_be_huge_is_not_read():
    class Counted(io.BytesIO):
        most = 0

        def read(self, size=-1):
            self.most = max(self.most, size if size >= 0 else 1 << 62)
            return super().read(size)

    file = Counted(struct.pack("<Q", 1 << 40) + b"{}")
    with pytest.raises(Refused):
        settings_import.read_upload("x.safetensors", file)
    assert file.most <= settings_import.MOST_HEADER_BYTES
