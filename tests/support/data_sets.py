"""A library with one data set, and an editor of the pictures in a test's own `folder`."""

import pytest

from lora_trainer.editor.editor import DataSetEditor
from lora_trainer.editor.library import Library


@pytest.fixture
def library(tmp_path):
    made = Library(tmp_path / "datasets")
    made.create("cats")
    yield made
    made.close()


@pytest.fixture
def editor(folder, tmp_path):
    opened = DataSetEditor(
        "cats",
        folder,
        tmp_path / "home",
        count_tokens=lambda captions: [len(caption.split()) for caption in captions],
    )
    yield opened
    opened.close()
