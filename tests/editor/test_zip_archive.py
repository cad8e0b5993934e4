"""ZIPs of strangers: what is taken out of them and where it goes, names in any encoding, and what
is refused, and why.
"""

import os
import stat
import struct
import time
import tracemalloc
import zipfile
import zlib

import pytest

from lora_trainer.base.errors import Refused
from lora_trainer.editor import zip_archive
from tests.support.uploaded import packed, png, reasons, there, upload


def packed_raw(names, content=png(), *, flagged=False, extra=b""):
    """Pack files under names of any bytes, as programs do that say nothing of their encoding."""
    placeholders = {
        name: f"@{number:04}".ljust(len(name), "_") for number, name in enumerate(names)
    }
    infos = {}
    for name, placeholder in placeholders.items():
        info = zipfile.ZipInfo(placeholder)
        info.extra = extra
        infos[info] = content[name] if isinstance(content, dict) else content
    data = packed(infos)
    for name, placeholder in placeholders.items():
        data = data.replace(placeholder.encode(), name)
    return data


@pytest.fixture
def folder(library):
    return library.path("cats")


@pytest.mark.parametrize(
    "name",
    [
        "../evil.png",
        "/evil.png",
        "a/../../evil.png",
        "..\\evil.png",
        "C:\\evil.png",
        "C:evil.png",
        "\\\\server\\share\\evil.png",
        "10_a/../../../evil.png",
        "10_..:/evil.png",
        "10_" + "x" * 250 + "/evil.png",
        "nul.png",
        "10_cat /../evil.png",
        "9" * 5000 + "_x/evil.png",
    ],
)
def test_no_path_leaves_the_data_set(library, folder, tmp_path, name):
    before = sorted(tmp_path.rglob("*"))
    taken = upload(library, packed({zipfile.ZipInfo(name): png(), "good.png": png("blue")}))
    assert taken.added == ["good.png"] and len(taken.refused) == 1
    assert sorted(
        set(tmp_path.rglob("*")) - set(before) - set((folder / ".train_lora").rglob("*"))
    ) == [folder / "good.png"]


def test_a_kohya_folder_that_is_a_link_is_not_followed(library, folder, tmp_path):
    (tmp_path / "outside").mkdir()
    os.symlink(tmp_path / "outside", folder / "10_cat")
    taken = upload(library, packed({"10_cat/1.png": png(), "10_cat/1.txt": "one"}))
    assert not taken.added and not list((tmp_path / "outside").iterdir())
    assert "leads out" in reasons(taken)["cats.zip/10_cat/1.png"]


def special(name, mode):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


def encrypted(data):
    """Say of the first file that it is encrypted, in both of its headers."""
    data = bytearray(data)
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = data.find(mark) + at
        data[place] |= 1
    return bytes(data)


@pytest.mark.parametrize(
    "data, sentence",
    [
        (packed({special("1.png", stat.S_IFLNK | 0o777): "/etc/passwd", "2.png": png()}), "a link"),
        (packed({special("1.png", stat.S_IFIFO | 0o644): png(), "2.png": png()}), "a device"),
        (packed({special("1.png", stat.S_IFBLK | 0o644): png(), "2.png": png()}), "a device"),
        (encrypted(packed({"1.png": png(), "2.png": png()})), "encrypted"),
        (packed({"1.zip": packed({"a.png": png()}), "2.png": png()}), "archive in an archive"),
        (packed({"1.png": packed({"a.png": png()}), "2.png": png()}), "not a picture"),
        (packed({"reg/1_cat/1.png": png("blue"), "2.png": png()}), "Regularisation"),
        (packed({"1.exe": b"MZ", "2.png": png()}), "neither a picture"),
    ],
)
def test_what_is_no_file_of_a_data_set_is_refused_with_a_sentence(library, folder, data, sentence):
    taken = upload(library, data)
    assert there(folder) == taken.added == ["2.png"] and sentence in next(
        iter(reasons(taken).values())
    )


def test_packings_that_need_much_memory_are_not_read(library, folder):
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        assert (
            "ordinary ZIP"
            in reasons(upload(library, packed({"1.png": png()}, method)))["cats.zip/1.png"]
        )
    assert not there(folder)


# --- Names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["gb18030", "utf-8", "cp932"])
def test_names_that_do_not_say_their_encoding(library, folder, encoding):
    words = (
        ["ねこと犬の写真", "赤い花です", "東京タワー"]
        if encoding == "cp932"
        else ["红色的猫咪照片", "蓝色的狗", "训练图片一"]
    )
    names = [f"{word}/{word}.png".encode(encoding) for word in words]
    taken = upload(
        library,
        packed_raw(
            names, {name: png(colour) for name, colour in zip(names, ("red", "blue", "green"))}
        ),
    )
    assert sorted(taken.added) == sorted(f"{word}.png" for word in words) == there(folder)


def test_many_names_in_utf8_are_seen_to_be_that(library, folder):
    names = [f"{'x' * (number % 3)}{number} 红色的猫咪照片.txt".encode() for number in range(300)]
    assert sum(map(len, names)) > zip_archive.SAMPLE_BYTES
    taken = upload(library, packed_raw(names, b"a cat"))
    assert sorted(taken.added) == sorted(name.decode() for name in names)


def test_names_in_utf8_as_zip_says_it(library, folder):
    data = packed({"10_红 猫/猫 1.png": png(), "10_红 猫/猫 1.txt": "猫"})
    assert (
        upload(library, data).added == ["10_红 猫/猫 1.png", "10_红 猫/猫 1.txt"] == there(folder)
    )


def test_the_unicode_name_beside_a_name_counts_if_it_belongs_to_it(library, folder):
    name, real = b"????.png", "猫猫.png".encode()
    field = struct.pack("<BL", 1, zlib.crc32(name)) + real
    extra = struct.pack("<HH", zip_archive.UNICODE_PATH, len(field)) + field
    assert upload(library, packed_raw([name], extra=extra)).added == ["猫猫.png"]
    wrong = struct.pack("<BL", 1, 1) + real
    extra = struct.pack("<HH", zip_archive.UNICODE_PATH, len(wrong)) + wrong
    assert not upload(library, packed_raw([name], png("blue"), extra=extra)).added


# --- Bombs and damage -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        packed({"1.png": png()})[:-30],
        packed({"1.png": png()})[40:],
        b"PK\x05\x06" + b"\xff" * 18,
        b"PK\x05\x06" + b"\x00" * 8 + b"\xff" * 8 + b"\x00\x00",
    ],
)
def test_what_is_no_whole_zip_is_refused(library, folder, data):
    try:
        assert not upload(library, data).added
    except Refused as refusal:
        assert refusal.code == "bad_archive"
    assert not there(folder)


def test_every_place_where_a_zip_may_be_damaged(library, folder):
    whole = packed({"1.png": png(), "1.txt": "one"})
    for at in range(0, len(whole), 3):
        for value in (0x00, 0xFF):
            data = whole[:at] + bytes([value]) + whole[at + 1 :]
            try:
                taken = upload(library, data)
            except Refused:
                continue
            for name in taken.added:
                assert name.endswith((".png", ".txt")) and (folder / name).is_file()
                (folder / name).unlink()
    assert not there(folder)


def test_a_file_that_unpacks_to_more_than_an_upload_may_hold_is_given_up(library, folder):
    data = packed({"1.png": b"\0" * 80_000_000, "2.txt": b" " * 5_000_000, "3.png": png()})
    assert len(data) < 100_000
    tracemalloc.start()
    began = time.monotonic()
    taken = upload(library, data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (
        taken.added == ["3.png"]
        and "larger than 64 MB" in reasons(taken)["cats.zip/1.png"]
        and "larger than 0.1 MB" in reasons(taken)["cats.zip/2.txt"]
    )
    assert peak < 150_000_000 and time.monotonic() - began < 20


def test_all_of_an_archive_is_bounded_while_it_is_read(library, folder, monkeypatch):
    monkeypatch.setattr(zip_archive, "FREE_OF_RATIO_BYTES", 1_000_000)
    monkeypatch.setattr(zip_archive, "MOST_RATIO", 2)
    data = packed({f"{number}.png": b"\0" * 400_000 for number in range(10)})
    taken = upload(library, data)
    assert (
        not taken.added
        and taken.refused[-1]["filename"] == "cats.zip"
        and "once it is unpacked. Nothing more was taken" in taken.refused[-1]["reason"]
    )
    assert len(taken.refused) < 5


def test_sizes_that_lie_change_nothing(library, folder):
    data = bytearray(packed({"1.png": b"\0" * 70_000_000, "2.png": png()}))
    for mark, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<L", data, data.find(mark) + at, 1000)
    taken = upload(library, bytes(data))
    assert taken.added == ["2.png"] and len(taken.refused) == 1


@pytest.mark.parametrize(
    "limit, value, sentence",
    [
        ("MOST_ENTRIES", 3, "holds 5 files"),
        ("LARGEST_ARCHIVE_BYTES", 100, "larger than"),
        ("LONGEST_READ_BYTES", 200, "list of files is too long"),
    ],
)
def test_archives_that_are_too_large_are_refused_at_once(
    library, folder, monkeypatch, limit, value, sentence
):
    monkeypatch.setattr(zip_archive, limit, value)
    with pytest.raises(Refused, match=sentence):
        upload(library, packed({f"{number}.png": png() for number in range(5)}))
    assert not there(folder)


def test_a_long_list_of_files_is_not_read_into_memory(library):
    entry = (
        struct.pack(
            "<4s4B4HL2L5H2L", b"PK\x01\x02", 20, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0
        )
        + b"a"
    )
    listing = entry * 2_000_000
    data = listing + struct.pack(
        "<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFE, 0xFFFE, len(listing), 0, 0
    )
    began = time.monotonic()
    with pytest.raises(Refused, match="too long"):
        upload(library, data)
    assert time.monotonic() - began < 2


def test_a_full_disk_ends_it(library, folder, monkeypatch):
    from lora_trainer.editor import upload_rules as module

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_atomically", full)
    taken = upload(library, packed({f"{number}.png": png() for number in range(5)}))
    assert (
        not taken.added
        and len(taken.refused) == 1
        and "Nothing more was taken" in taken.refused[0]["reason"]
    )
