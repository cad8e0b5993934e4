"""The documents name what is there: docs/architecture.md has every file, and no other."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def tree_of_docs() -> set[str]:
    """Return the paths in the tree of docs/architecture.md, below lora_trainer/."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    lines = text[text.index("\nlora_trainer/\n") :].splitlines()[2:]
    folders, found = [], set()
    for line in lines:
        name = re.match(r"( +)([\w.]+(?:/|\.py)(?:, [\w.]+\.py)*)", line)
        if name is None:
            break
        depth = len(name[1]) // 2 - 1
        folders = folders[:depth]
        if name[2].endswith("/"):
            folders.append(name[2].rstrip("/"))
        else:
            found |= {"/".join([*folders, each]) for each in name[2].split(", ")}
    return found


def test_the_tree_has_every_file_and_no_other():
    package = ROOT / "lora_trainer"
    files = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    }
    assert tree_of_docs() == files
