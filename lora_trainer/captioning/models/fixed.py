"""`fixed`: the same words for every picture, with the picture's own name and folder where the
template says so.
"""

import re
from pathlib import Path

from PIL import Image

from ...base.errors import ErrorCode, Refused
from ...settings.setting import Setting
from ..contracts import READY, Captioner, LoadedCaptioner, OnProgress, Readiness, ShouldStop
from ..options import OptionValues

FIELDS = ("trigger", "filename", "folder")
_FIELD = re.compile(r"\{(\w*)\}")


class FixedCaptioner(Captioner):
    name = "fixed"
    title = "Fixed text"
    help = (
        "The same text for every picture. {filename} and {folder} stand for the picture's own,"
        " {trigger} for the trigger word. Looks at no picture."
    )

    def options(self) -> list[Setting]:
        return [
            Setting(
                "{trigger}, {folder}",
                "Text",
                "What is written. {trigger}, {filename} (without its ending) and {folder} (without"
                " a leading 10_) are filled in.",
                name="template",
            )
        ]

    def readiness(self, options: OptionValues) -> Readiness:
        _check(options["template"])
        return READY

    def load(
        self, options: OptionValues, *, on_progress: OnProgress, should_stop: ShouldStop
    ) -> LoadedCaptioner:
        _check(options["template"])
        return _Filled(options["template"], options.get("trigger_word", ""))


class _Filled(LoadedCaptioner):
    sentences = True  # nothing but the template decides where commas stand

    def __init__(self, template: str, trigger_word: str) -> None:
        self._template, self._trigger_word = template, trigger_word

    def caption(self, images: list[Image.Image], paths: list[Path]) -> list[list[str]]:
        return [[self._fill(path)] for path in paths]

    def _fill(self, path: Path) -> str:
        values = {
            "trigger": self._trigger_word,
            "filename": path.stem,
            "folder": re.sub(r"^\d+_", "", path.parent.name),
        }
        filled = _FIELD.sub(lambda found: values[found[1]], self._template)
        return re.sub(
            r"^[\s,]+|[\s,]+$", "", re.sub(r"(,\s*)+,", ",", filled)
        )  # commas that stood around an empty field


def _check(template: str) -> None:
    unknown = [name for name in _FIELD.findall(template) if name not in FIELDS]
    if unknown:
        raise Refused(
            f"The text has {{{unknown[0]}}}; it can have {{trigger}}, {{filename}} and {{folder}}.",
            field="template",
            code=ErrorCode.BAD_VALUE,
        )
    if not template.strip():
        raise Refused("The text is empty.", field="template", code=ErrorCode.BAD_VALUE)
