"""The files below the LoRA folder, as the WebUI finds them: links to other folders are followed."""

import os
from collections.abc import Iterator
from pathlib import Path


def lora_files(lora_dir: Path) -> Iterator[Path]:
    """Yield every file in a folder and below it; a folder that links lead to more than once, or in
    a circle, is read once.
    """
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(lora_dir, followlinks=True):
        real_path = os.path.realpath(folder)
        if real_path in seen:
            subfolders.clear()
            continue
        seen.add(real_path)
        yield from (Path(folder, name) for name in names)
