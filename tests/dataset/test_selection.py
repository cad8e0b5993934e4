"""Which pictures a run reads and what for: training, regularisation, validation; and masks."""

from collections import Counter

import pytest
from PIL import Image

from tests.support.selections import fill, named, pictures, refused, repeats_of, roles, selected

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
