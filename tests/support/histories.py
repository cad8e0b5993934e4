"""Files under an undo history."""

import os

import pytest


def text(place, name, content=b"old\n"):
    (place / name).write_bytes(content)
    return name


fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
