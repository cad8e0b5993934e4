"""ZIPs of strangers: what is taken out of them and where it goes, names in any encoding, and what
is refused, and why.
"""

import io
import os
import stat
import struct
import time
import tracemalloc
import zipfile
import zlib

import pytest
from PIL import Image

from lora_trainer.base.errors import Refused
from lora_trainer.editor import zip_archive
from lora_trainer.editor.library import Library


def png(colour="red", size=(64, 64)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def packed(files, method=zipfile.ZIP_DEFLATED):
    """Pack {name or ZipInfo: content}; returns the archive's bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


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


def upload(library, data, name="cats.zip"):
    return library.add_archive("cats", name, io.BytesIO(data))


def there(folder):
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and ".train_lora" not in path.parts
    )


def reasons(taken):
    return {row["filename"]: row["reason"] for row in taken.refused}


def test_pictures_and_captions_come_out_and_kohyas_folders_stay(library, folder):
    taken = upload(
        library,
        packed(
            {
                "set/img/10_red cat/1.png": png(),
                "set/img/10_red cat/1.txt": "one",
                "set/img/10_red cat/mask/1.png": png("white"),
                "set/2.png": png("blue"),
                "set/2.txt": "two, 猫",
                "set/more/3.png": png("green"),
                "set/metadata.csv": "filename,prompt\n3.png,three\n",
                "__MACOSX/set/._2.png": b"x",
                "set/.DS_Store": b"x",
                "set/Thumbs.db": b"x",
                "set/empty/": b"",
                "readme.md": "hello",
            }
        ),
    )
    assert there(folder) == [
        "10_red cat/1.png",
        "10_red cat/1.txt",
        "10_red cat/mask/1.png",
        "2.png",
        "2.txt",
        "3.png",
        "metadata.csv",
    ]
    assert sorted(taken.added) == there(folder) and list(reasons(taken)) == ["cats.zip/readme.md"]
    rows = {
        row["filename"]: (row["caption"], row["repeats"])
        for row in library.describe("cats")["pictures"]
    }
    assert rows == {"10_red cat/1.png": ("one", 10), "2.png": ("two, 猫", 1), "3.png": ("three", 1)}


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


# --- Together or not at all -----------------------------------------------------------------------


def test_nothing_that_is_there_is_written_over(library, folder):
    library.add("cats", "1.png", png())
    library.add("cats", "1.txt", b"mine")
    library.add("cats", "2.png", png("blue"))
    taken = upload(
        library,
        packed({"1.png": png("green"), "1.txt": "theirs", "2.png": png("blue"), "2.txt": "new"}),
    )
    assert (
        (folder / "1.txt").read_bytes() == b"mine"
        and (folder / "1.png").read_bytes() == png()
        and (folder / "2.txt").read_bytes() == b"new"
    )
    assert (
        set(reasons(taken)) == {"cats.zip/1.png", "cats.zip/1.txt"}
        and "other content" in reasons(taken)["cats.zip/1.png"]
    )
    assert (
        not upload(library, packed({"2.txt": "another"})).added
        and (folder / "2.txt").read_bytes() == b"new"
    )


def test_a_mask_that_is_refused_keeps_no_caption_back(library, folder):
    library.add("cats", "1-masklabel.png", png("white"))
    taken = upload(
        library, packed({"1.png": png(), "1-masklabel.png": png("black"), "1.txt": "one"})
    )
    assert taken.added == ["1.png", "1.txt"] and list(reasons(taken)) == [
        "cats.zip/1-masklabel.png"
    ]


def test_a_picture_in_two_files_of_one_name_of_which_one_is_taken_keeps_its_caption(
    library, folder
):
    taken = upload(library, packed({"1.png": png(), "1.webp": b"no picture", "1.txt": "one"}))
    assert taken.added == ["1.png", "1.txt"] and list(reasons(taken)) == ["cats.zip/1.webp"]


def test_a_caption_never_goes_to_another_picture(library, folder):
    taken = upload(
        library,
        packed(
            {
                "a/1.png": png(),
                "b/1.jpg": png("blue"),
                "b/1.txt": "of b",
                "c/2.png": b"no picture",
                "c/2.txt": "of c",
                "d/3.txt": "of d",
                "e/3.png": png("green"),
            }
        ),
    )
    assert there(folder) == ["1.png", "3.png"] == taken.added
    said = reasons(taken)
    assert (
        "a has files called 1, too" in said["cats.zip/b/1.jpg"]
        and "a has files called 1, too" in said["cats.zip/b/1.txt"]
    )
    assert (
        said["cats.zip/c/2.txt"] == "Its picture was not taken."
        and "e has files called 3, too" in said["cats.zip/d/3.txt"]
    )


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


# --- Folders --------------------------------------------------------------------------------------


@pytest.fixture
def outputs(tmp_path):
    """What the WebUI leaves: pictures by day with their making, beside them the same as text."""
    from PIL.PngImagePlugin import PngInfo

    place = tmp_path / "outputs" / "2024-01-01"
    place.mkdir(parents=True)
    for number, colour in enumerate(("red", "blue")):
        texts = PngInfo()
        texts.add_text(
            "parameters",
            f"a (zib:1.2), number {number}\nNegative prompt: bad\nSteps: 20, Sampler: Euler, CFG"
            " scale: 7",
        )
        Image.new("RGB", (64, 64), colour).save(place / f"0000{number}.png", pnginfo=texts)
        (place / f"0000{number}.txt").write_text(
            f"a (zib:1.2), number {number}\nNegative prompt: bad\nSteps: 20, Sampler: Euler, CFG"
            " scale: 7\n"
        )
    os.symlink(place / "00000.png", place / "link.png")
    return place.parent


def test_an_output_folder_becomes_a_data_set(library, folder, outputs):
    before = {path: path.read_bytes() for path in outputs.rglob("*") if path.is_file()}
    taken = library.add_folder("cats", str(outputs), with_prompts=True)
    assert taken.added == there(folder) == ["00000.png", "00001.png"] and not taken.refused
    assert library.add_captions_from_prompts("cats", taken.added) == []
    assert library.open("cats").captions() == {
        "00000.png": "a zib, number 0",
        "00001.png": "a zib, number 1",
    }
    assert {path: path.read_bytes() for path in outputs.rglob("*") if path.is_file()} == before
    again = library.add_folder("cats", str(outputs), with_prompts=True)
    assert again.added == taken.added and not again.refused


def test_texts_that_are_no_captions_stay_where_they_are(library, folder, outputs):
    day = next(path for path in outputs.rglob("*.png")).parent
    (day / "LICENSE.txt").write_text("not a caption")
    (day / "00000.caption").write_text("a zib")
    (outputs / "notes.caption").write_text("private")
    taken = library.add_folder("cats", str(outputs))
    assert (
        "00000.caption" in there(folder)
        and not {"LICENSE.txt", "notes.caption"} & set(there(folder))
        and not taken.refused
    )


def test_a_caption_file_that_cannot_be_read_costs_its_picture_alone(library, folder, outputs):
    taken = library.add_folder("cats", str(outputs), with_prompts=True)
    (folder / "00000.txt").write_bytes(b"x" * 300_000)
    refused = library.add_captions_from_prompts("cats", taken.added)
    assert [row["filename"] for row in refused] == [
        "00000.png"
    ] and "larger than 200 kB" in refused[0]["reason"]
    assert library.open("cats").captions() == {"00001.png": "a zib, number 1"}


def test_a_folder_within_the_data_set_and_one_that_is_not_there_are_refused(
    library, folder, tmp_path
):
    for path in (folder, tmp_path, tmp_path / "nothing"):
        with pytest.raises(Refused):
            library.add_folder("cats", str(path))


def test_a_folder_that_is_refused_leaves_no_new_data_set(library, outputs, tmp_path, monkeypatch):
    from lora_trainer.editor import uploads

    with pytest.raises(Refused, match="one within the other"):
        library.add_folder("fresh", str(tmp_path), create=True)
    monkeypatch.setattr(uploads, "MOST_FILES", 1)
    with pytest.raises(Refused, match="more than 1 files"):
        library.add_folder("fresh", str(outputs), create=True)
    with pytest.raises(Refused, match="bad\\\\x00"):
        library.add_folder("bad\x00", str(outputs), create=True)
    assert "fresh" not in [row["name"] for row in library.all()]


def test_folders_that_may_not_be_read_are_not_listed(tmp_path, outputs):
    def check(path):
        if "outputs" in str(path):
            raise Refused("Not from here.", code="forbidden_path")

    made = Library(tmp_path / "datasets", check)
    made.create("cats")
    with pytest.raises(Refused, match="Not from here"):
        made.add_folder("cats", str(outputs))
    made.close()


def test_a_folder_of_too_many_files_is_refused(library, outputs, monkeypatch):
    from lora_trainer.editor import uploads

    monkeypatch.setattr(uploads, "MOST_FILES", 1)
    with pytest.raises(Refused, match="more than 1 files"):
        library.add_folder("cats", str(outputs))
