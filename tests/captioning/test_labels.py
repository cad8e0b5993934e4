"""Label lists: ours, users' copies of them, and what is wrong with a list."""

from pathlib import Path

import pytest

from lora_trainer.base.errors import Refused
from lora_trainer.captioning.labels import Label, LabelSets, parse_group


def test_a_group_is_read():
    group = parse_group(
        "light",
        "# comment\nprompt: a photo of {}\nPrompt: {} light\n\n day \nrain = rainy weather\n- ="
        " ordinary light\n",
    )
    assert group.prompts == ("a photo of {}", "{} light")
    assert group.labels == (
        Label("day", "day"),
        Label("rain", "rainy weather"),
        Label("", "ordinary light"),
    )
    assert group.prompts_for(group.labels[1]) == ("a photo of rainy weather", "rainy weather light")
    assert parse_group("light", "day\nnight").prompts == ("{}",)


@pytest.mark.parametrize(
    "text, says",
    [
        ("day", "has 1 labels"),
        ("", "has 0 labels"),
        ("prompt: photo\nday\nnight", "Line 1 of the group x: a prompt needs one {}"),
        ("day\nprompt: {} {}\nnight", "Line 2"),
    ],
)
def test_what_cannot_be_used_is_said_with_its_line(text, says):
    with pytest.raises(Refused, match=says) as caught:
        parse_group("x", text)
    assert caught.value.code == "bad_labels"


def test_ours_are_good_lists(label_sets):
    assert label_sets.names() == ["default", "shapes"]
    groups = label_sets.groups("default")
    assert [group.name for group in groups] == [
        "subject",
        "medium",
        "style",
        "lighting",
        "composition",
        "colour",
    ]
    assert all(
        40 <= len(group.labels) <= 140 and len(set(group.labels)) == len(group.labels)
        for group in groups
    )
    assert [group.name for group in label_sets.groups("shapes")] == [
        "shape",
        "colour",
        "background",
        "size",
        "stripes",
    ]


def test_a_copy_takes_the_place_of_ours_until_it_is_deleted(label_sets, tmp_path):
    ours = label_sets.describe("default")
    assert not ours["changed"] and ours["editable"]
    saved = label_sets.save(
        "default", {"weather": "rain\nsun\n", "animal": "prompt: a photo of {}\ncat\ndog"}
    )
    assert (
        saved["changed"]
        and [group["name"] for group in saved["groups"]] == ["weather", "animal"]
        and saved["path"] == str(tmp_path / "labels" / "default")
    )
    assert [group.name for group in label_sets.groups("default")] == ["weather", "animal"]
    label_sets.save("default", {"animal": "cat\ndog"})
    assert [group["name"] for group in label_sets.describe("default")["groups"]] == ["animal"]
    label_sets.restore("default")
    assert (
        label_sets.describe("default") == ours
        and [path.name for path in (tmp_path / "labels").iterdir()] == []
    )


def test_new_sets_come_and_go(label_sets):
    label_sets.save("my own", {"a": "x\ny"})
    assert label_sets.names() == ["default", "shapes", "my own"]
    label_sets.restore("my own")
    assert label_sets.names() == ["default", "shapes"]
    for name in ("default", "nothing"):
        with pytest.raises(Refused) as caught:
            label_sets.restore(name)
        assert caught.value.code == ("nothing_to_restore" if name == "default" else "not_found")


@pytest.mark.parametrize(
    "name, groups",
    [
        ("../x", {"a": "x\ny"}),
        ("", {"a": "x\ny"}),
        (".x", {"a": "x\ny"}),
        ("x", {"a/b": "x\ny"}),
        ("x", {}),
        ("x", {"a": "x"}),
        ("x", {"a": "x\ny\n" * 200_000}),
        ("x", {"a": "x\n\x00"}),
        ("x.", {"a": "x\ny"}),
    ],
)
def test_a_bad_list_changes_nothing(label_sets, tmp_path, name, groups):
    with pytest.raises(Refused):
        label_sets.save(name, groups)
    assert not (tmp_path / "labels").exists() and label_sets.names() == ["default", "shapes"]


def test_no_name_leads_out_of_the_folder(label_sets):
    for name in ("..", "../labels", ".", "", "a/b", "default/.."):
        with pytest.raises(Refused) as caught:
            label_sets.path(name)
        assert caught.value.code == "not_found"


class Killed(BaseException):
    """The process ends here: nothing but the disk is left."""


@pytest.mark.parametrize("at", range(1, 4))
def test_a_list_outlives_a_process_that_is_killed_while_it_is_saved(
    label_sets, tmp_path, monkeypatch, at
):
    home = tmp_path / "labels"
    label_sets.save("my own", {"old": "x\ny"})
    done, rename, rmtree = [], Path.rename, __import__("shutil").rmtree

    def step(act):
        def stepped(*arguments, **keywords):
            done.append(act)
            if len(done) == at:
                raise Killed
            return act(*arguments, **keywords)

        return stepped

    monkeypatch.setattr(Path, "rename", step(rename))
    monkeypatch.setattr("shutil.rmtree", step(rmtree))
    with pytest.raises(Killed):
        label_sets.save("my own", {"new": "x\ny"})
    monkeypatch.undo()
    after = LabelSets(home)
    assert "my own" in after.names() and [
        group["name"] for group in after.describe("my own")["groups"]
    ] == ["old" if at < 3 else "new"]
    assert after.save("my own", {"newest": "x\ny"})["groups"][0]["name"] == "newest"
    assert not list(home.glob(".*.old"))


def test_a_list_that_cannot_take_its_place_leaves_the_old_one(label_sets, tmp_path, monkeypatch):
    label_sets.save("my own", {"old": "x\ny"})
    rename = Path.rename

    def no_new_one(path, target):
        if target.name == "my own" and not path.name.endswith(".old"):
            raise PermissionError(13, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", no_new_one)
    with pytest.raises(Refused, match="cannot be saved in .*Permission denied"):
        label_sets.save("my own", {"new": "x\ny"})
    assert [path.name for path in (tmp_path / "labels").iterdir()] == [
        "my own"
    ] and label_sets.groups("my own")[0].name == "old"


@pytest.mark.parametrize(
    "name", ["con", "NUL", "Com1", "lpt9", "aux.labels", "prn .x", "com\u00b9"]
)
def test_names_that_windows_keeps_for_itself_are_refused(label_sets, tmp_path, name):
    for arguments in ((name, {"a": "x\ny"}), ("x", {name: "x\ny"})):
        with pytest.raises(Refused, match="Windows") as caught:
            label_sets.save(*arguments)
        assert caught.value.code == "bad_name" and not (tmp_path / "labels").exists()
    assert label_sets.save("console", {"com10": "x\ny"})
