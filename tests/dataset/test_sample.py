"""What the user is warned of in a picture."""

from pathlib import Path

from lora_trainer.dataset.sample import NO_CAPTION, TRANSPARENT, Picture


def test_warnings_come_in_one_order():
    picture = Picture(Path("a.png"), 64, 64, "", has_alpha=True, file_warnings=("tiny",))
    assert picture.warnings == ("tiny", TRANSPARENT, NO_CAPTION)
    assert Picture(Path("a.png"), 64, 64, "a circle").warnings == ()
