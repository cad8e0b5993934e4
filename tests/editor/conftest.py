"""A folder of three pictures, two of them with a caption."""

import pytest

from lora_trainer.editor.undo_history import History
from tests.support.edited_sets import picture


@pytest.fixture
def folder(tmp_path):
    for name, caption in (("a.png", "zib, cat"), ("b.png", "dog"), ("猫 c.png", None)):
        path = picture(tmp_path / "pictures" / name)
        if caption:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return tmp_path / "pictures"


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    return folder


@pytest.fixture
def history(place, tmp_path):
    opened = History(place, tmp_path / "home")
    yield opened
    opened.close()
