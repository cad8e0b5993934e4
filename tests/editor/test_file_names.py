"""Names that a file of a data set may have."""

import pytest

from lora_trainer.base.errors import Refused
from lora_trainer.editor.file_names import safe_filename


@pytest.mark.parametrize("to", ["../../x", "sub/x", "..\\x", "C:\\x"])
def test_a_new_name_never_leaves_the_folder(editor, folder, to):
    with pytest.raises(Refused, match="names a folder"):
        editor.files.rename("a.png", to)
    assert safe_filename("..\\..\\evil.png") == "evil.png"
