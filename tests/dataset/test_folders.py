"""Folders that a run reads, with their own repeats."""

import pytest

from lora_trainer.dataset.folders import extra_folders, folders_of
from lora_trainer.settings.config import TrainConfig
from tests.support.selections import fill, named, pictures, refused, repeats_of, selected


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
