"""Folders with their own repeats, pictures for regularisation and for validation, masks: which
pictures a run reads and what for.
"""

from collections import Counter

import pytest
from PIL import Image

from lora_trainer.base.errors import Refused
from lora_trainer.dataset.folders import extra_folders, folders_of
from lora_trainer.dataset.sample import ROLES
from lora_trainer.dataset.selection import select
from lora_trainer.settings.config import TrainConfig


def fill(folder, *names, caption="", size=(64, 64)):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", size).save(folder / f"{name}.png")
        if caption:
            (folder / f"{name}.txt").write_text(caption, encoding="utf-8")
    return folder


def selected(folder, thorough=True, **settings):
    return select(TrainConfig.parse({"train_data_dir": str(folder), **settings}), thorough=thorough)


def named(selection, role="train"):
    return {picture.path.stem: picture.repeats for picture in selection.of(role)}


def roles(selection):
    return [role for role in ROLES for _ in selection.of(role)]


def pictures(selection):
    return [picture for role in ROLES for picture in selection.of(role)]


def repeats_of(selection):
    """How often each picture is trained in an epoch."""
    return [picture.repeats for picture in selection.training + selection.regularisation] + [
        0 for _ in selection.validation
    ]


def refused(folder, **settings):
    with pytest.raises(Refused) as refusal:
        selected(folder, **settings)
    return refusal.value


# --- Folders --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line, path, repeats",
    [
        (r"5 x D:\more pictures", r"D:\more pictures", 5),
        ("12x  /tmp/a b", "/tmp/a b", 12),
        ("3 × 猫的照片", "猫的照片", 3),
        ("/tmp/10_cat 😺", "/tmp/10_cat 😺", None),
        (r'2 X "C:\Users\Anna K\pics"', r"C:\Users\Anna K\pics", 2),
        ("12x12", "12x12", None),
        ("5 apples", "5 apples", None),
        (r"\\server\share\a", r"\\server\share\a", None),
    ],
)
def test_lines_of_folders(line, path, repeats):
    (found,) = extra_folders(f"\n  {line}  \n\n")
    assert (str(found.path), found.repeats) == (path, repeats)


@pytest.mark.parametrize(
    "line, sentence",
    [
        ("5 x", "names no folder"),
        ('3 x ""', "names no folder"),
        ("0 x /a", "0 times. Use 1 to 1000"),
        ("1001 x /a", "1001 times"),
    ],
)
def test_lines_that_make_no_sense(line, sentence, tmp_path):
    error = refused(fill(tmp_path / "a", "1"), extra_data_dirs=line)
    assert sentence in error.message and error.field == "extra_data_dirs"


def test_several_folders_with_their_own_repeats(tmp_path):
    main = fill(tmp_path / "main", "a", "b")
    fill(tmp_path / "猫 😺", "c")
    fill(tmp_path / "猫 😺" / "7_black_cat", "d")
    fill(tmp_path / "10_cat", "e")
    fill(tmp_path / "4_dog", "f")
    found = selected(
        main,
        extra_data_dirs=(
            f"5 x {tmp_path / '猫 😺'}\n{tmp_path / '10_cat'}\n1 x {tmp_path / '4_dog'}"
        ),
    )
    assert named(found) == {"a": 1, "b": 1, "c": 5, "d": 7, "e": 10, "f": 1} and repeats_of(
        found
    ) == [
        1,
        1,
        5,
        7,
        10,
        1,
    ]
    assert [picture.caption for picture in pictures(found)] == [
        "",
        "",
        "",
        "black cat",
        "cat",
        "dog",
    ]


def test_the_common_repeats_are_for_folders_that_say_nothing(tmp_path):
    main, more = fill(tmp_path / "main", "a"), fill(tmp_path / "more", "b")
    assert named(selected(main, extra_data_dirs=str(more), repeats=3)) == {"a": 3, "b": 3}
    assert named(selected(main, extra_data_dirs=f"2 x {more}", repeats=3)) == {"a": 3, "b": 2}


@pytest.mark.parametrize(
    "what, sentence",
    [
        ("none", "does not exist"),
        ("file", "is a file, not a folder"),
        ("empty", "There are no pictures in"),
        ("main", "already"),
    ],
)
def test_a_bad_folder_is_refused_by_name(tmp_path, what, sentence):
    main = fill(tmp_path / "main", "a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    error = refused(main, extra_data_dirs=f"{fill(tmp_path / 'good', 'b')}\n{tmp_path / what}")
    assert (
        sentence in error.message
        and str(tmp_path / what) in error.message
        and error.field == "extra_data_dirs"
    )
    error = refused(main, reg_data_dir=str(tmp_path / what))
    assert error.field == "reg_data_dir" and (
        sentence in error.message or "Regularisation needs others" in error.message
    )


def test_a_subfolder_is_not_read_twice(tmp_path):
    fill(tmp_path / "5_cat", "a")
    assert (
        "learn from already" in refused(tmp_path, extra_data_dirs=str(tmp_path / "5_cat")).message
    )


def test_folders_of_no_repeats_are_left_out_and_said(tmp_path):
    main, more, other = (
        fill(tmp_path / "main", *"abc"),
        fill(tmp_path / "0_more", "m"),
        fill(tmp_path / "reg" / "1_cat", "r").parent,
    )
    fill(main / "0_zero", "y", "z")
    fill(other / "0_dog", "s")
    found = selected(
        main,
        extra_data_dirs=f"{main.parent / '0_more'}",
        reg_data_dir=str(other),
        validation_split=0.3,
    )
    assert (
        set(named(found)) | set(named(found, "validation")) == set("abc")
        and named(found, "regularisation") == {"r": 2}
        and repeats_of(found) == [1, 1, 2, 0]
    )
    assert [problem.path for problem in found.problems] == [main / "0_zero", more, other / "0_dog"]
    assert [problem.reason for problem in found.problems[:2]] == [
        f"The folder {name} has 0 repeats by its name: {what} left out."
        for name, what in (("0_zero", "2 pictures"), ("0_more", "1 picture"))
    ]
    assert named(selected(main, extra_data_dirs=f"5 x {more}")) == {
        "a": 1,
        "b": 1,
        "c": 1,
        "m": 5,
    }  # a line's own repeats win


def test_nothing_but_folders_of_no_repeats(tmp_path):
    main, zero = fill(tmp_path / "main", "a"), fill(tmp_path / "only" / "0_zero", "y", "z").parent
    for training, field, changes in (
        (zero, "train_data_dir", {}),
        (main, "reg_data_dir", {"reg_data_dir": str(zero)}),
    ):
        error = refused(training, **changes)
        assert (
            error.field == field
            and "Every picture has 0 repeats by its folder's name (0_zero)" in error.message
            and "1_zero" in error.message
        )
    assert named(selected(zero, extra_data_dirs=str(main))) == {"a": 1} and named(
        selected(zero / "0_zero", repeats=3)
    ) == {"y": 3, "z": 3}


def test_a_table_that_lies_in_the_first_folder_is_its_own(tmp_path):
    main, more = fill(tmp_path / "main", "a"), fill(tmp_path / "more", "a", "b")
    for folder in (main, tmp_path):
        (folder / "list.csv").write_text("filename,prompt\na.png,first\nb.png,second\n")
    assert [
        picture.caption
        for picture in selected(
            main, extra_data_dirs=str(more), metadata_path=str(main / "list.csv")
        ).training
    ] == ["first", "", ""]
    assert [
        picture.caption
        for picture in selected(
            main, extra_data_dirs=str(more), metadata_path=str(tmp_path / "list.csv")
        ).training
    ] == ["first", "first", "second"]


def test_every_folder_that_would_be_read_is_named(tmp_path):
    config = TrainConfig.parse(
        {"train_data_dir": "/a", "extra_data_dirs": "2 x /b c\n/d", "reg_data_dir": "/e"}
    )
    assert folders_of(config) == ["/a", "/b c", "/d", "/e"] and folders_of(TrainConfig()) == []


# --- Regularisation -------------------------------------------------------------------------------


def counted_as_kohya_does(repeats, total):
    """Count pictures one by one until there are as many as of the training pictures: all first with
    their own repeats, then one more of each in turn.
    """
    counts = list(repeats)
    at = 0
    while sum(counts) < total:
        counts[at % len(counts)] += 1
        at += 1
    return counts


@pytest.mark.parametrize("reg, repeats", [(["r", "s", "t"], 1), (["r", "s", "t"], 2), (["r"], 1)])
def test_regularisation_pictures_are_raised_to_as_many_as_yours(tmp_path, reg, repeats):
    main, other = (
        fill(tmp_path / "main", *"abcde"),
        fill(tmp_path / "reg" / f"{repeats}_cat", *reg).parent,
    )
    found = selected(main, reg_data_dir=str(other), repeats=2)
    assert (
        list(named(found, "regularisation").values())
        == counted_as_kohya_does([repeats] * len(reg), 10)
        and sum(repeats_of(found)) == 20
    )
    assert roles(found) == ["train"] * 5 + ["regularisation"] * len(reg) and repeats_of(found)[
        5:
    ] == list(named(found, "regularisation").values())
    assert [picture.caption for picture in pictures(found)[5:]] == ["cat"] * len(
        reg
    ) and not found.warnings


def test_of_more_regularisation_pictures_some_are_taken(tmp_path):
    main, other = fill(tmp_path / "main", *"abc"), tmp_path / "reg"
    fill(other / "1_cat", *(f"c{number}" for number in range(10)))
    fill(other / "2_dog", *(f"d{number}" for number in range(10)))
    found, again, other_seed = (
        selected(main, reg_data_dir=str(other), repeats=2, seed=seed) for seed in (1, 1, 2)
    )
    assert sum(repeats_of(found)) == 12 and named(found, "regularisation") == named(
        again, "regularisation"
    ) != named(other_seed, "regularisation")
    count = roles(found).count("regularisation")
    assert found.warnings == [
        f"{20 - count} of the 20 regularisation pictures are left out: as many are shown as of"
        " yours, repeats included."
    ]
    taken = {
        name
        for seed in range(12)
        for name in named(
            selected(main, reg_data_dir=str(other), repeats=2, seed=seed), "regularisation"
        )
    }
    assert {name[0] for name in taken} == {"c", "d"} and len(taken) > 10


# --- Validation -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "count, share, expected",
    [(10, 0.0, 0), (10, 0.2, 2), (10, 0.01, 1), (5, 0.5, 3), (3, 0.5, 1), (4, 0.5, 2)],
)
def test_whole_pictures_are_kept_out(tmp_path, count, share, expected):
    main = fill(tmp_path / "3_cat", *(f"p{number}" for number in range(count)))
    found = selected(main, validation_split=share)
    assert (
        Counter(roles(found)) == Counter({"train": count - expected, "validation": expected})
        and repeats_of(found) == [3] * (count - expected) + [0] * expected
    )
    assert len({picture.path for picture in pictures(found)}) == count


def test_which_are_kept_out_depends_on_the_seed_alone(tmp_path):
    main = fill(tmp_path / "main", *(f"p{number}" for number in range(20)))
    kept = [
        tuple(named(selected(main, validation_split=0.2, seed=seed), "validation"))
        for seed in (1, 1, 2)
    ]
    assert kept[0] == kept[1] != kept[2]


def test_too_few_to_keep_any_out(tmp_path):
    error = refused(fill(tmp_path / "main", "a", "b"), validation_split=0.1)
    assert (
        "there are only 2. It needs at least 3" in error.message
        and error.field == "validation_split"
    )


def test_order_of_all_three(tmp_path):
    main, other = fill(tmp_path / "main", *"abcde"), fill(tmp_path / "reg", "r")
    found = selected(main, reg_data_dir=str(other), validation_split=0.2)
    assert roles(found) == ["train"] * 4 + ["regularisation", "validation"] and repeats_of(
        found
    ) == [
        1,
        1,
        1,
        1,
        4,
        0,
    ]


# --- Masks ----------------------------------------------------------------------------------------


def test_missing_masks_are_told_once_and_bad_ones_cost_their_picture(tmp_path):
    main = fill(tmp_path / "main", *"abcd")
    Image.new("L", (64, 64), 255).save(main / "a-masklabel.png")
    (main / "b-masklabel.png").write_text("no picture")
    found = selected(main, masked_loss="files")
    assert named(found) == {"a": 1, "c": 1, "d": 1} and found.masks == {
        main / "a.png": main / "a-masklabel.png",
        main / "b.png": main / "b-masklabel.png",
    }
    assert [problem.path.name for problem in found.problems] == [
        "b-masklabel.png"
    ] and "mask of b.png, which is left out" in found.problems[0].reason
    assert found.warnings == [
        "2 of 3 pictures (c.png, …) have no mask beside them: all of them is learned."
    ]
    assert set(named(selected(main))) == set("abcd") and not selected(main).warnings


def test_no_usable_mask_at_all(tmp_path):
    main = fill(tmp_path / "main", "a")
    (main / "a-masklabel.png").write_text("no picture")
    assert refused(main, masked_loss="files").field == "masked_loss"


def test_pictures_without_transparency_are_told_once(tmp_path):
    main = fill(tmp_path / "main", "a", "b")
    Image.new("RGBA", (64, 64)).save(main / "c.png")
    assert selected(main, masked_loss="alpha").warnings == [
        "2 of 3 pictures (a.png, …) are transparent nowhere: all of them is learned."
    ]
    (main / "b.png").unlink()
    assert selected(main, masked_loss="alpha").warnings == [
        "a.png is transparent nowhere: all of it is learned."
    ]


def test_masks_of_regularisation_pictures_are_used_and_not_missed(tmp_path):
    main, other = fill(tmp_path / "main", "a"), fill(tmp_path / "reg", "r", "s", "t")
    for path, content in ((main / "a-masklabel.png", 255), (other / "r-masklabel.png", 255)):
        Image.new("L", (64, 64), content).save(path)
    (other / "s-masklabel.png").write_text("no picture")
    found = selected(main, masked_loss="files", reg_data_dir=str(other), repeats=3)
    assert (
        named(found, "regularisation") == {"r": 2, "t": 1}
        and not found.warnings
        and other / "r.png" in found.masks
    )
    assert [problem.path.name for problem in found.problems] == ["s-masklabel.png"]
