"""Uploads of tests, and what became of them."""

import io
import zipfile

from PIL import Image


def png(colour="red", size=(64, 64)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def packed(files, method=zipfile.ZIP_DEFLATED):
    """Pack {name or ZipInfo: content}; returns the archive's bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def upload(library, data, name="cats.zip"):
    return library.add_archive("cats", name, io.BytesIO(data))


def there(folder):
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and ".train_lora" not in path.parts
    )


def reasons(taken):
    return {row["filename"]: row["reason"] for row in taken.refused}
