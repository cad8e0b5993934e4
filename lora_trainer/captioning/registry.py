"""Which captioners there are: ours, and those that the host brings."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

from ..base.errors import ErrorCode, Refused
from ..settings.setting import Setting, WrittenSettings
from .caption_affixes import options_for
from .contracts import Captioner, Readiness
from .labels import LabelSets
from .models.clip_labels import ClipLabelsCaptioner
from .models.coca import CocaCaptioner
from .models.fixed import FixedCaptioner
from .models.tagger import WdTagger
from .options import OptionValues, OptionView, describe_option, read_options


class ReadinessView(TypedDict):
    """A captioner's `Readiness` as JSON."""

    ready: bool
    needs: str
    download_bytes: int | None
    downloads: str


class CaptionerView(ReadinessView):
    """A captioner as JSON, ready or not with the defaults of its options."""

    name: str
    title: str
    help: str
    options: list[OptionView]


class Captioners:
    """Ours and the host's, by name, as plain values for interfaces. The first is the one that is
    proposed.
    """

    def __init__(
        self,
        data_dir: Path,
        label_sets: LabelSets,
        check_path: Callable[[Path], None],
        others: Sequence[Captioner] = (),
    ) -> None:
        ours = [
            ClipLabelsCaptioner(data_dir, label_sets, check_path),
            CocaCaptioner(data_dir, check_path),
            WdTagger(data_dir, check_path),
        ]
        self._captioners = {
            captioner.name: captioner for captioner in (*ours, *others, FixedCaptioner())
        }

    def get(self, name: str) -> Captioner:
        """Return a captioner; raises `Refused` (code "not_found")."""
        if name not in self._captioners:
            raise Refused(
                f"There is no captioner {str(name)[:80]!r}; there are"
                f" {', '.join(self._captioners)}.",
                field="captioner",
                code=ErrorCode.NOT_FOUND,
            )
        return self._captioners[name]

    def names(self) -> list[str]:
        return list(self._captioners)

    def options(self, captioner: Captioner) -> list[Setting]:
        """Return its own options, then the common ones."""
        return [*captioner.options(), *options_for(captioner.underscores_to_spaces)]

    def read(self, name: str, values: WrittenSettings) -> tuple[Captioner, OptionValues]:
        """Return a captioner and its complete options; raises `Refused`."""
        captioner = self.get(name)
        return captioner, read_options(self.options(captioner), values)

    def all(self) -> list[CaptionerView]:
        """Describe every captioner."""
        return [self._describe(captioner) for captioner in self._captioners.values()]

    def readiness(self, name: str, values: WrittenSettings) -> ReadinessView:
        captioner, options = self.read(name, values)
        return _readiness(captioner.readiness(options))

    def _describe(self, captioner: Captioner) -> CaptionerView:
        options = self.options(captioner)
        try:
            readiness = captioner.readiness(read_options(options, {}))
        except Refused as error:  # a label list that a user broke must not hide the others
            readiness = Readiness(False, error.message)
        return {
            "name": captioner.name,
            "title": captioner.title,
            "help": captioner.help,
            **_readiness(readiness),
            "options": [describe_option(option) for option in options],
        }


def _readiness(readiness: Readiness) -> ReadinessView:
    return {
        "ready": readiness.ready,
        "needs": readiness.needs,
        "download_bytes": readiness.download_bytes,
        "downloads": readiness.downloads,
    }
