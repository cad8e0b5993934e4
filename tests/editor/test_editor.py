"""A data set being edited: single captions, bulk edits, tables, files, checks; and what other
programs do meanwhile.
"""

import io
import os

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lora_trainer.base.errors import Refused
from lora_trainer.dataset.captions import read_caption
from lora_trainer.editor.checks import CheckSettings
from lora_trainer.editor.editor import DataSetEditor
from lora_trainer.editor.file_names import safe_filename


def picture(path, size=(64, 48), colour="red", **extra):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **extra)
    return path


@pytest.fixture
def folder(tmp_path):
    for name, caption in (("a.png", "zib, cat"), ("b.png", "dog"), ("猫 c.png", None)):
        path = picture(tmp_path / "pictures" / name)
        if caption:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return tmp_path / "pictures"


def rows(editor):
    return {row["filename"]: row for row in editor.describe()["pictures"]}


def captions(editor):
    return {name: row["caption"] for name, row in rows(editor).items()}


# --- One caption ----------------------------------------------------------------------------------


def test_a_caption_is_saved_undone_and_done_again(editor, folder):
    before = rows(editor)["a.png"]["version"]
    done = editor.set_captions({"a.png": "  new \r\n\n caption "}, versions={"a.png": before})
    assert (folder / "a.txt").read_text(encoding="utf-8") == "new\ncaption\n" and done["captions"][
        "a.png"
    ]["caption"] == "new\ncaption"
    assert (
        done["captions"]["a.png"]["version"] == rows(editor)["a.png"]["version"] != before
        and done["history"]["undo"] == "Caption of a.png"
    )
    undone = editor.undo()
    assert (folder / "a.txt").read_bytes() == b"zib, cat" and undone["captions"]["a.png"] == {
        "caption": "zib, cat",
        "version": before,
        "automatic": False,
    }
    assert editor.redo()["captions"]["a.png"]["caption"] == "new\ncaption"


def test_a_stale_version_writes_nothing_and_says_what_is_there(editor, folder):
    seen = {name: row["version"] for name, row in rows(editor).items()}
    (folder / "a.txt").write_text("by another program", encoding="utf-8")
    with pytest.raises(Refused) as caught:
        editor.set_captions({"b.png": "x", "a.png": "y"}, versions=seen)
    assert caught.value.code == "changed_meanwhile" and caught.value.details["conflicts"] == [
        {
            "filename": "a.png",
            "caption": "by another program",
            "version": rows(editor)["a.png"]["version"],
        }
    ]
    assert (
        captions(editor) == {"a.png": "by another program", "b.png": "dog", "猫 c.png": ""}
        and editor.describe()["history"]["undo"] is None
    )
    editor.set_captions({"a.png": "mine"})  # the user said: keep mine
    assert (
        captions(editor)["a.png"] == "mine"
        and editor.undo()["captions"]["a.png"]["caption"] == "by another program"
    )


def test_a_caption_file_that_came_meanwhile_counts_as_changed(editor, folder):
    (folder / "猫 c.txt").write_text("now there", encoding="utf-8")
    with pytest.raises(Refused, match="Changed meanwhile"):
        editor.set_captions({"猫 c.png": "x"}, versions={"猫 c.png": ""})


def test_an_emptied_caption_stays_empty_though_a_table_has_one(editor, folder):
    (folder / "metadata.csv").write_text(
        "filename,prompt\n猫 c.png,from the table\n", encoding="utf-8"
    )
    assert (
        captions(editor)["猫 c.png"] == "from the table"
        and rows(editor)["猫 c.png"]["version"] == ""
    )
    editor.set_captions({"猫 c.png": ""})
    assert captions(editor)["猫 c.png"] == ""
    assert editor.undo()["captions"]["猫 c.png"]["caption"] == "from the table"


@pytest.mark.parametrize(
    "filename",
    ["../x.png", "/etc/passwd", "no.png", "a.txt", "sub/../a.png", ".hidden.png", "out.png"],
)
def test_what_is_no_picture_of_the_set_is_not_written(editor, folder, tmp_path, filename):
    picture(tmp_path / "x.png")
    picture(folder / ".hidden.png")
    os.symlink(tmp_path / "x.png", folder / "out.png")
    for act in (
        lambda: editor.set_captions({"a.png": "new", filename: "x"}),
        lambda: editor.files.move_to_trash(["a.png", filename]),
        lambda: editor.files.rotate([filename], 90),
        lambda: editor.files.rename(filename, "y"),
        lambda: editor.pictures.preview(filename),
        lambda: editor.pictures.training_crop(filename, CheckSettings()),
        lambda: editor.pictures.thumbnail(filename),
    ):
        with pytest.raises(Refused) as caught:
            act()
        assert caught.value.code == "not_found"
    assert (
        captions(editor)["a.png"] == "zib, cat"
        and not (tmp_path / "x.txt").exists()
        and "out.png" not in rows(editor)
    )
    assert "leads out" in editor.describe()["problems"][0]["reason"]


def test_a_caption_that_is_a_link_out_of_the_folder_is_not_followed(editor, folder, tmp_path):
    (tmp_path / "secret.txt").write_text("secret", encoding="utf-8")
    os.symlink(tmp_path / "secret.txt", folder / "猫 c.txt")
    editor.set_captions({"猫 c.png": "mine"})
    assert (tmp_path / "secret.txt").read_text(encoding="utf-8") == "secret" and captions(editor)[
        "猫 c.png"
    ] == "mine"


def test_html_is_text(editor):
    nasty = '<img src=x onerror=alert(1)>, "quoted", &amp;'
    editor.set_captions({"a.png": nasty})
    assert captions(editor)["a.png"] == nasty


# --- Many captions --------------------------------------------------------------------------------


def test_bulk_edit_is_previewed_done_and_undone_as_one_step(editor, folder):
    plan = editor.bulk_edit("prepend", {"text": "best"}, preview=True)
    assert plan["count"] == 3 and plan["changes"][0] == {
        "filename": "a.png",
        "before": "zib, cat",
        "after": "best, zib, cat",
        "version": rows(editor)["a.png"]["version"],
    }
    assert captions(editor)["a.png"] == "zib, cat" and editor.describe()["history"]["undo"] is None
    done = editor.bulk_edit(
        "prepend",
        {"text": "best"},
        versions={change["filename"]: change["version"] for change in plan["changes"]},
    )
    assert done["count"] == 3 and done["label"] == "Put best in front (3 captions)"
    assert captions(editor) == {"a.png": "best, zib, cat", "b.png": "best, dog", "猫 c.png": "best"}
    editor.undo()
    assert (
        captions(editor) == {"a.png": "zib, cat", "b.png": "dog", "猫 c.png": ""}
        and not (folder / "猫 c.txt").exists()
    )


def test_bulk_edit_of_some_and_with_stale_versions(editor, folder):
    editor.bulk_edit("append", {"text": "x"}, filenames=["b.png"])
    assert captions(editor) == {"a.png": "zib, cat", "b.png": "dog, x", "猫 c.png": ""}
    with pytest.raises(Refused, match="Changed meanwhile"):
        editor.bulk_edit("append", {"text": "y"}, versions={"b.png": "stale"})
    with pytest.raises(Refused, match="no picture 'z.png'"):
        editor.bulk_edit("sort", {}, filenames=["z.png"])
    assert (
        editor.bulk_edit("remove_tag", {"tag": "nothing"})["count"] == 0
        and editor.describe()["history"]["undo"] == "Add x at the end (1 caption)"
    )


def test_two_pictures_of_one_caption_file(editor, folder):
    picture(folder / "a.jpg")
    editor.bulk_edit("append", {"text": "x"})
    assert (folder / "a.txt").read_text(encoding="utf-8") == "zib, cat, x\n"
    editor.files.move_to_trash(["a.jpg"])
    assert captions(editor)["a.png"] == "zib, cat, x"
    editor.undo()
    editor.undo()
    assert (folder / "a.txt").read_text(encoding="utf-8") == "zib, cat"


def test_a_captioner_keeps_what_a_person_wrote(editor):
    with editor.captioning("Automatic") as write:
        assert write({"a.png": "auto", "猫 c.png": "auto"}) == ["猫 c.png"]
    assert rows(editor)["猫 c.png"]["automatic"] and captions(editor)["a.png"] == "zib, cat"
    editor.set_captions({"猫 c.png": "changed by a person"})
    with editor.captioning("Automatic") as write:
        assert write({"猫 c.png": "again"}) == []
        assert write({"猫 c.png": "again", "b.png": "again"}, keep_manual=False) == [
            "猫 c.png",
            "b.png",
        ]
    with editor.captioning("Automatic") as write:
        assert write({"b.png": "better"}) == ["b.png"]
    assert captions(editor) == {"a.png": "zib, cat", "b.png": "better", "猫 c.png": "again"}
    for expected in ("again", "dog"):
        editor.undo()
        assert captions(editor)["b.png"] == expected
    assert captions(editor)["猫 c.png"] == "changed by a person"


def test_tables_are_previewed_imported_and_exported(editor):
    table = (
        'filename,prompt\nC:\\x\\a.png,"from, the table"\nb.png,dog\nno.png,x\n../b.png,y\n猫'
        " c.png,黑猫\n".encode("gb18030")
    )
    plan = editor.tables.import_captions("metadata.csv", table)
    assert (
        plan["encoding"] == "gb18030"
        and plan["rows"] == 5
        and plan["unchanged"] == 1
        and [problem["line"] for problem in plan["problems"]] == [4, 5]
    )
    assert plan["changes"][0] == {
        "line": 2,
        "filename": "a.png",
        "before": "zib, cat",
        "after": "from, the table",
        "version": rows(editor)["a.png"]["version"],
    }
    assert captions(editor)["a.png"] == "zib, cat"
    done = editor.tables.import_captions(
        "metadata.csv",
        table,
        apply=True,
        versions={change["filename"]: change["version"] for change in plan["changes"]},
    )
    assert (
        captions(editor) == {"a.png": "from, the table", "b.png": "dog", "猫 c.png": "黑猫"}
        and done["history"]["undo"] == "Captions from metadata.csv"
    )
    for format in ("csv", "jsonl"):
        again = editor.tables.import_captions(
            f"metadata.{format}", editor.tables.export_captions(format)
        )
        assert again["changes"] == again["problems"] == [] and again["unchanged"] == 3
    editor.undo()
    assert captions(editor) == {"a.png": "zib, cat", "b.png": "dog", "猫 c.png": ""}
    with pytest.raises(Refused, match="expected csv or jsonl"):
        editor.tables.export_captions("xlsx")


# --- Files ----------------------------------------------------------------------------------------


def test_rename_takes_the_caption_along(editor, folder):
    done = editor.files.rename("a.png", "花 1.PNG")
    assert (
        done["filename"] == "花 1.png"
        and done["files_changed"]
        and captions(editor) == {"花 1.png": "zib, cat", "b.png": "dog", "猫 c.png": ""}
    )
    assert not (folder / "a.txt").exists()
    editor.undo()
    assert captions(editor)["a.png"] == "zib, cat" and not (folder / "花 1.txt").exists()


@pytest.mark.parametrize(
    "to, code",
    [
        ("b", "exists"),
        ("b.png", "exists"),
        ("con", "bad_name"),
        ("", "bad_name"),
        ("a:b", "bad_name"),
        (".x", "bad_name"),
        ("x. ", "bad_name"),
    ],
)
def test_names_that_cannot_be_taken(editor, to, code):
    with pytest.raises(Refused) as caught:
        editor.files.rename("a.png", to)
    assert caught.value.code == code and "a.png" in captions(editor)


@pytest.mark.parametrize("to", ["../../x", "sub/x", "..\\x", "C:\\x"])
def test_a_new_name_never_leaves_the_folder(editor, folder, to):
    with pytest.raises(Refused, match="names a folder"):
        editor.files.rename("a.png", to)
    assert safe_filename("..\\..\\evil.png") == "evil.png"


def test_rotation_is_undone_to_the_very_bytes(editor, folder):
    before = (folder / "b.png").read_bytes()
    version = rows(editor)["b.png"]["thumbnail"]
    editor.files.rotate(["b.png", "a.png"], 90)
    assert (rows(editor)["b.png"]["width"], rows(editor)["b.png"]["height"]) == (48, 64) and rows(
        editor
    )["b.png"]["thumbnail"] != version
    editor.undo()
    assert (folder / "b.png").read_bytes() == before
    editor.redo()
    with Image.open(folder / "b.png") as image:
        assert image.size == (48, 64)
    with pytest.raises(Refused, match="90, 180 or 270"):
        editor.files.rotate(["b.png"], 45)


def test_deleted_pictures_lie_in_the_trash_and_come_back_with_captions(editor, folder, tmp_path):
    done = editor.files.move_to_trash(["a.png", "猫 c.png"])
    assert (
        done["label"] == "Delete 2 pictures"
        and done["files_changed"]
        and list(captions(editor)) == ["b.png"]
    )
    assert not (folder / "a.txt").exists() and editor.describe()["trash"] == str(
        tmp_path / "home" / "trash"
    )
    assert sorted(path.name[:2] for path in (tmp_path / "home" / "trash").iterdir()) == [
        "a.",
        "猫 ",
    ]
    editor.undo()
    assert captions(editor) == {"a.png": "zib, cat", "b.png": "dog", "猫 c.png": ""}


def test_kohya_folders(editor, folder):
    picture(folder / "10_red cat" / "a.png")
    assert (
        rows(editor)["10_red cat/a.png"]["caption"] == "red cat"
        and rows(editor)["10_red cat/a.png"]["repeats"] == 10
    )
    editor.set_captions({"10_red cat/a.png": "mine"})
    assert (
        read_caption(folder / "10_red cat" / "a.png") == "mine"
        and captions(editor)["a.png"] == "zib, cat"
    )
    editor.files.rename("10_red cat/a.png", "z")
    editor.files.move_to_trash(["10_red cat/z.png"])
    editor.undo()
    assert captions(editor)["10_red cat/z.png"] == "mine"


def test_the_revision_tells_what_others_changed(editor, folder):
    seen = [editor.revision()]
    for act in (
        lambda: (folder / "a.txt").write_text("x", encoding="utf-8"),
        lambda: picture(folder / "d.png"),
        lambda: (folder / "d.png").unlink(),
        lambda: editor.set_captions({"b.png": "y"}),
    ):
        act()
        seen.append(editor.revision())
    assert len(set(seen)) == len(seen) - 1 or len(set(seen)) == len(
        seen
    )  # adding and removing may lead back to the same
    assert editor.state()["revision"] == seen[-1] and seen[0] != seen[1] != seen[2]


def test_an_edit_tells_whether_somebody_else_edited_before(editor, folder):
    held = editor.revision()
    first = editor.set_captions({"a.png": "one"})
    assert first["revision_before"] == held and first["revision"] == editor.revision() != held
    (folder / "b.txt").write_text("outside", encoding="utf-8")
    assert editor.set_captions({"a.png": "two"})["revision_before"] != first["revision"]
    assert editor.undo()["revision_before"] not in (held, first["revision"])


@pytest.mark.parametrize(
    "act", [lambda editor: editor.set_captions({"a.png": "one"}), lambda editor: editor.undo()]
)
def test_what_another_program_does_right_after_an_edit_shows_as_a_difference(
    editor, folder, monkeypatch, act
):
    from lora_trainer.editor.file_changes import FileChanger

    editor.set_captions({"a.png": "before"})
    real = FileChanger.apply

    def write(self, *arguments, **settings):
        skipped = real(self, *arguments, **settings)
        (folder / "b.txt").unlink()
        return skipped

    monkeypatch.setattr(FileChanger, "apply", write)
    assert act(editor)["revision"] != editor.revision()


def test_a_folder_that_is_gone_is_said_so(editor, folder):
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    for act in (editor.describe, editor.state, lambda: editor.bulk_edit("sort", {})):
        with pytest.raises(Refused, match="cannot be read|does not exist"):
            act()


# --- Checks ---------------------------------------------------------------------------------------


def checked(editor, wanted=CheckSettings()):
    while not (found := editor.pictures.check(wanted))["ready"]:
        pass
    return found


def codes(found, filename):
    return {remark["code"] for remark in found["pictures"][filename]["remarks"]}


def noise(seed, size=(640, 640)):
    cells = np.random.RandomState(seed).randint(0, 255, (8, 8, 3)).astype(np.uint8)
    return Image.fromarray(cells).resize(size, Image.BICUBIC)


def test_every_check_finds_what_it_is_for_and_nothing_else(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, name in enumerate(("good", "silent", "long", "strange")):
        noise(number).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(
            {"silent": "", "long": "zib " * 80, "strange": "a zibra"}.get(name, "zib, good"),
            encoding="utf-8",
        )
    noise(0).crop((12, 12, 630, 630)).resize((700, 700)).save(folder / "again.jpg", quality=60)
    noise(5, (200, 200)).save(folder / "tiny.png")
    noise(6, (1600, 500)).save(folder / "wide.png")
    noise(7).convert("L").save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:2000])
    for name in ("again", "tiny", "wide"):
        (folder / f"{name}.txt").write_text("zib", encoding="utf-8")
    editor = DataSetEditor(
        "all",
        folder,
        tmp_path / "home",
        count_tokens=lambda captions: [len(caption.split()) for caption in captions],
    )
    found = checked(editor, CheckSettings(trigger_word="zib", max_token_length=75))
    assert {name: codes(found, name) for name in found["pictures"]} == {
        "good.png": {"near_duplicate"},
        "again.jpg": {"near_duplicate"},
        "silent.png": {"no_caption"},
        "long.png": {"long_caption"},
        "strange.png": {"no_trigger"},
        "tiny.png": {"small"},
        "wide.png": {"odd_ratio"},
    }
    assert (
        found["pictures"]["good.png"]["duplicates"] == ["again.jpg"]
        and found["pictures"]["long.png"]["tokens"] == 80
    )
    assert (
        found["pictures"]["strange.png"]["tokens"] == 3
    )  # the trigger word that training adds is counted
    assert {row["code"]: row["count"] for row in found["summary"]} == {
        "unreadable": 1,
        "no_caption": 1,
        "long_caption": 1,
        "no_trigger": 1,
        "near_duplicate": 2,
        "small": 1,
        "odd_ratio": 1,
    }
    assert editor.describe()["problems"][0]["filename"] == "cut.png"
    editor.close()


def test_what_was_examined_is_known_after_a_restart(editor, folder, tmp_path, monkeypatch):
    checked(editor)
    again = DataSetEditor("cats", folder, tmp_path / "home")
    monkeypatch.setattr(
        "lora_trainer.editor.background_scan.look", lambda *_: pytest.fail("looked again")
    )
    assert again.pictures.check(CheckSettings())["ready"]
    assert again.pictures.thumbnail("a.png").is_file()
    again.close()


def test_a_changed_picture_is_looked_at_again(editor, folder):
    checked(editor)
    noise(3).save(folder / "a.png")
    assert not editor.pictures.check(CheckSettings())["ready"]
    assert codes(checked(editor), "a.png") == set() | (
        {"near_duplicate"} & codes(checked(editor), "a.png")
    )
    assert checked(editor)["pictures"]["a.png"]["crop"]["bucket"] == [512, 512]


def test_crop_shows_what_the_trainer_gets(editor, folder):
    gradient = np.zeros((300, 900, 3), np.uint8)
    gradient[:, :, 0] = np.linspace(0, 255, 900).astype(np.uint8)
    Image.fromarray(gradient).save(folder / "wide.png")
    wanted = CheckSettings(resolution=256, enable_bucket=False)
    crop = editor.pictures.check(wanted)["pictures"]["wide.png"]["crop"]
    assert crop == {
        "bucket": [256, 256],
        "left": 300.0,
        "top": 0.0,
        "width": 300.0,
        "height": 300.0,
    }
    with Image.open(io.BytesIO(editor.pictures.training_crop("wide.png", wanted))) as image:
        pixels = np.asarray(image)
        assert (
            image.size == (256, 256)
            and abs(int(pixels[128, 2, 0]) - 85) < 8
            and abs(int(pixels[128, 253, 0]) - 170) < 8
        )
    with Image.open(io.BytesIO(editor.pictures.preview("wide.png"))) as image:
        assert image.size == (900, 300)


def test_a_prompt_in_a_picture_becomes_its_caption(tmp_path):
    from lora_trainer.editor.picture_files import prompt_of

    texts = PngInfo()
    texts.add_text(
        "parameters",
        "(masterpiece:1.2), a [red] cat \\(toy\\), <lora:zib:0.8>, <lyco:x:1>\nNegative prompt:"
        " bad\nSteps: 20, Sampler: Euler",
    )
    picture(tmp_path / "a.png", pnginfo=texts)
    assert prompt_of(tmp_path / "a.png") == "masterpiece, a red cat \\(toy\\)"
    exif = Image.Exif()
    exif[0x8769] = {0x9286: b"UNICODE\x00" + "猫, cat\nSteps: 20".encode("utf-16-be")}
    picture(tmp_path / "b.jpg", exif=exif)
    assert prompt_of(tmp_path / "b.jpg") == "猫, cat"
    picture(tmp_path / "c.png")
    texts = PngInfo()
    texts.add_text("parameters", "Negative prompt: bad\nSteps: 20")
    picture(tmp_path / "d.png", pnginfo=texts)
    assert prompt_of(tmp_path / "c.png") == prompt_of(tmp_path / "d.png") == ""


@pytest.mark.parametrize(
    "name, extra",
    [
        ("a.jpg", {}),
        ("a.png", {}),
        ("a.webp", {"lossless": True}),
        ("a.bmp", {}),
        ("a.gif", {}),
        ("a.tif", {}),
    ],
)
def test_every_format_can_be_turned(tmp_path, name, extra):
    from lora_trainer.editor.picture_files import rotated

    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, :40] = (250, 10, 10)
    Image.fromarray(pixels).save(tmp_path / name, **extra)
    with Image.open(io.BytesIO(rotated(tmp_path / name, 90))) as image:
        turned = np.asarray(image.convert("RGB"))
        assert (
            image.size == (40, 80) and turned[10, 20, 0] > 200 and turned[70, 20, 0] < 50
        )  # clockwise: the left side is now at the top


def test_an_upright_picture_stays_upright_when_the_camera_said_how(tmp_path):
    from lora_trainer.editor.picture_files import rotated

    exif = Image.Exif()
    exif[0x0112] = 6
    picture(tmp_path / "a.jpg", size=(80, 40), exif=exif)  # shown as 40 x 80
    with Image.open(io.BytesIO(rotated(tmp_path / "a.jpg", 90))) as image:
        assert image.size == (80, 40) and image.getexif().get(0x0112, 1) == 1
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    picture(tmp_path / "c.png", size=(80, 40), exif=exif)
    with Image.open(io.BytesIO(rotated(tmp_path / "c.png", 90))) as image:
        assert image.size == (40, 80) and image.getexif()[0x010F] == "a camera"
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "phone.mpo.jpg", "MPO", save_all=True, append_images=frames[1:])
    rotated(tmp_path / "phone.mpo.jpg", 180)
    frames[0].save(tmp_path / "b.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(Refused, match="animated"):
        rotated(tmp_path / "b.gif", 90)


# --- What a reviewer broke ------------------------------------------------------------------------


def test_a_bulk_edit_does_not_take_a_change_of_the_moment_for_its_own(editor, folder, monkeypatch):
    from lora_trainer.editor import editor as module

    real = module.plan_edit

    def plan(*arguments, **settings):
        (folder / "b.txt").write_text("saved just now", encoding="utf-8")
        return real(*arguments, **settings)

    monkeypatch.setattr(module, "plan_edit", plan)
    with pytest.raises(Refused, match="Changed meanwhile"):
        editor.bulk_edit("append", {"text": "x"})
    assert captions(editor) == {"a.png": "zib, cat", "b.png": "saved just now", "猫 c.png": ""}


def test_rename_takes_a_caption_from_a_table_along(editor, folder):
    (folder / "metadata.csv").write_text("filename,prompt\n猫 c.png,precious\n", encoding="utf-8")
    editor.files.rename("猫 c.png", "d")
    assert captions(editor)["d.png"] == "precious"
    editor.undo()
    assert captions(editor)["猫 c.png"] == "precious" and not (folder / "d.txt").exists()


def test_a_name_whose_caption_file_another_picture_would_get_is_taken(editor, folder):
    picture(folder / "lonely.jpg")
    with pytest.raises(Refused, match="already lonely.jpg"):
        editor.files.rename("a.png", "lonely")
    assert captions(editor)["lonely.jpg"] == ""


def test_an_ending_in_capitals_counts(editor, folder):
    picture(folder / "a.JPG")
    editor.files.move_to_trash(["a.png"])
    assert captions(editor)["a.JPG"] == "zib, cat"


def test_a_captioner_goes_on_when_a_picture_went_away(editor, folder):
    (folder / "b.png").unlink()
    with editor.captioning("Automatic") as write:
        assert write({"b.png": "auto", "猫 c.png": "auto"}) == ["猫 c.png"]


def test_an_automatic_caption_stays_automatic_when_renamed_and_when_a_second_run_is_undone(editor):
    for words in ("first", "second"):
        with editor.captioning("Automatic") as write:
            write({"猫 c.png": words})
    editor.undo()
    assert rows(editor)["猫 c.png"]["automatic"] and captions(editor)["猫 c.png"] == "first"
    editor.files.rename("猫 c.png", "d")
    assert rows(editor)["d.png"]["automatic"]


def test_a_linked_kohya_folder_gets_nothing(editor, folder, tmp_path):
    picture(tmp_path / "outside" / "s.png")
    (tmp_path / "outside" / "s.txt").write_text("secret", encoding="utf-8")
    os.symlink(tmp_path / "outside", folder / "10_cat")
    assert "10_cat/s.png" not in captions(
        editor
    ) and b"secret" not in editor.tables.export_captions("csv")
    editor.bulk_edit("append", {"text": "x"})
    assert (tmp_path / "outside" / "s.txt").read_text(encoding="utf-8") == "secret"


def test_a_name_that_is_no_unicode_is_listed_and_nothing_else_suffers(editor, folder):
    source = os.fsencode(folder / "b.png")
    try:
        os.link(source, os.path.join(os.fsencode(folder), "\u732b.png".encode("cp932")))
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    assert [problem["reason"] for problem in editor.describe()["problems"]] == [
        "Its name is not in UTF-8; rename it."
    ]
    assert (
        editor.bulk_edit("append", {"text": "x"})["count"] == 3
        and editor.pictures.check(CheckSettings())["total"] == 3
    )


def test_a_tiff_with_broken_tags_is_a_problem_and_nothing_more(editor, folder):
    picture(folder / "t.tif")
    data = bytearray((folder / "t.tif").read_bytes())
    for at in range(8, min(len(data), 400), 7):
        broken = bytearray(data)
        broken[at : at + 3] = b"\xff\x00\xff"
        (folder / "t.tif").write_bytes(broken)
        assert {"a.png", "b.png"} <= set(captions(editor))


def test_two_pictures_of_one_caption_file_cannot_get_two_captions(editor, folder):
    picture(folder / "a.jpg")
    with pytest.raises(Refused, match="shares its caption file a.txt"):
        editor.set_captions({"a.png": "one", "a.jpg": "two"})
    report = editor.tables.import_captions(
        "m.csv", b"filename,prompt\na.png,one\na.jpg,two\n", apply=True
    )
    assert [problem["line"] for problem in report["problems"]] == [3] and captions(editor)[
        "a.jpg"
    ] == "one"


def test_what_undo_left_alone_is_named(editor, folder):
    editor.bulk_edit("append", {"text": "x"})
    (folder / "b.txt").write_text("outside", encoding="utf-8")
    done = editor.undo(if_changed="skip")
    assert done["skipped"] == ["b.png"] and set(done["captions"]) == {"a.png", "猫 c.png"}


# --- What a first user stumbled over --------------------------------------------------------------


def test_the_names_of_pictures_tell_the_encoding_of_a_table(editor, folder):
    picture(folder / "猫 和 狗.png")
    table = 'filename,prompt\n猫 和 狗.png,"狗, 猫"\n'.encode("gb18030")
    assert editor.tables.import_captions("m.csv", table)["changes"][0]["after"] == "狗, 猫"


def test_an_empty_cell_empties_no_caption(editor):
    report = editor.tables.import_captions(
        "m.csv", b"filename,prompt\na.png,\nb.png,cow\n", apply=True
    )
    assert (
        captions(editor)["a.png"] == "zib, cat"
        and captions(editor)["b.png"] == "cow"
        and report["problems"][0]["line"] == 2
    )


def test_a_shared_caption_file_is_pointed_out(editor, folder):
    picture(folder / "a.jpg")
    found = checked(editor)
    assert "shared_caption" in codes(found, "a.png") & codes(
        found, "a.jpg"
    ) and "shared_caption" not in codes(found, "b.png")
