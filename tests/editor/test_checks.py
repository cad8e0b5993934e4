"""What is said of each picture before training on it."""

from lora_trainer.editor.checks import CheckSettings
from lora_trainer.editor.editor import DataSetEditor
from tests.support.edited_sets import checked, codes, noise, picture


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


def test_a_shared_caption_file_is_pointed_out(editor, folder):
    picture(folder / "a.jpg")
    found = checked(editor)
    assert "shared_caption" in codes(found, "a.png") & codes(
        found, "a.jpg"
    ) and "shared_caption" not in codes(found, "b.png")
