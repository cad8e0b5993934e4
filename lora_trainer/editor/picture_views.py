"""What the page shows of the pictures of a data set: thumbnails, previews, what training sees of
them, and the checks of all pictures.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from ..dataset.captions import lines_of, with_trigger
from ..dataset.images import read_facts, unreadable_refused
from ..dataset.sample import Picture
from . import checks, picture_files
from .edited_dataset import EditedDataset
from .near_duplicates import DuplicateFinder

CountTokens = Callable[[Sequence[str]], "list[int] | None"]
"""Counts the CLIP tokens of each caption; None while it is not ready to."""


class WarningView(TypedDict):
    code: str
    message: str


class CheckRow(TypedDict):
    """A picture's warnings, crop and near duplicates; `tokens` None where none are counted yet."""

    tokens: int | None
    duplicates: Sequence[str]
    remarks: list[WarningView]
    crop: checks.CropView


class CheckReport(TypedDict):
    """`ready` is false as long as something is missing; `pictures` are by name."""

    ready: bool
    examined: int
    total: int
    summary: list[checks.WarningCount]
    pictures: dict[str, CheckRow]


class PictureViews:
    """Shows and checks the pictures of one data set."""

    def __init__(self, dataset: EditedDataset, count_tokens: CountTokens | None) -> None:
        self._dataset = dataset
        self._count_tokens = count_tokens
        self._duplicates = DuplicateFinder()

    def thumbnail(self, filename: str) -> Path:
        """Return a small JPEG of a picture, made once; raises `Refused` for a file that is no
        picture of this data set.
        """
        return self._dataset.scan.thumbnail(self._dataset.picture_path(filename))

    def preview(self, filename: str) -> bytes:
        """Return a large JPEG of a picture."""
        return picture_files.preview(self._dataset.picture_path(filename))

    def training_crop(self, filename: str, settings: checks.CheckSettings) -> bytes:
        """Return a JPEG of what training sees of a picture."""
        path = self._dataset.picture_path(filename)
        with unreadable_refused(path):
            facts = read_facts(path, thorough=False)
        bucket = checks.bucket_for(facts.width, facts.height, settings)
        return picture_files.training_crop(path, bucket)

    def check(self, settings: checks.CheckSettings) -> CheckReport:
        """Return the warnings and the crop of every picture, and start the background scan of those
        that were not scanned yet.
        """
        reader = self._dataset.reader
        listing = reader.list_files()
        pictures, problems = reader.scan(listing)
        scanned = reader.scan_results(listing, pictures)
        self._dataset.scan.start(
            [picture.path for name, picture in pictures.items() if name not in scanned]
        )
        duplicates = self._duplicates.find({name: found.looks for name, found in scanned.items()})
        sharing = listing.pictures_sharing_caption()
        tokens = self._tokens_of(pictures, settings)
        rows: dict[str, CheckRow] = {}
        warnings_by_picture = []
        for name, picture in pictures.items():
            checked = checks.CheckedPicture(
                picture.width,
                picture.height,
                checks.crop_for(picture.width, picture.height, settings),
                picture.caption,
                tokens=tokens.get(name),
                other_caption=picture.other_caption,
                near_duplicates=duplicates.get(name, []),
                sharing_caption=sharing.get(name, []),
            )
            warnings = checks.check_picture(checked, settings)
            warnings_by_picture.append(warnings)
            rows[name] = {
                "tokens": checked.tokens,
                "duplicates": checked.near_duplicates,
                "remarks": [
                    {"code": warning.code, "message": warning.message} for warning in warnings
                ],
                "crop": checked.crop.to_json(),
            }
        are_tokens_counted = len(tokens) == len(pictures) or not self._count_tokens
        return {
            "ready": len(scanned) == len(pictures) and are_tokens_counted,
            "examined": len(scanned),
            "total": len(pictures),
            "summary": checks.summary(warnings_by_picture, len(problems)),
            "pictures": rows,
        }

    def _tokens_of(
        self, pictures: Mapping[str, Picture], settings: checks.CheckSettings
    ) -> dict[str, int]:
        """Count the tokens of each picture's caption as training reads it, the longest of its
        lines if it chooses among them; {} while they cannot be counted.
        """
        if not self._count_tokens or not pictures:
            return {}
        captions = []
        for picture in pictures.values():
            longest = max(lines_of(picture.caption, settings.caption_lines), key=len)
            captions.append(with_trigger(longest, settings.trigger_word))
        counts = self._count_tokens(captions)
        return dict(zip(pictures, counts, strict=True)) if counts else {}
