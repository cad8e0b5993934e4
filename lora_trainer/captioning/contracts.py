"""What a captioner is: it says what it needs, is loaded when it is chosen, turns pictures into
words, and gives everything back.

`Captioner` is cheap to make and to ask; `LoadedCaptioner` holds the model. Its options are settings
(settings/setting.py). The loop that feeds pictures to a loaded captioner is `run.py`; how its words
become a caption is `caption_affixes.py`.
"""

import abc
import dataclasses
from collections.abc import Callable, Generator
from pathlib import Path

import torch
from PIL import Image

from ..settings.setting import Setting
from .options import OptionValues

OnProgress = Callable[[str, float], None]  # a sentence for the user, and how far it is, in [0, 1]
ShouldStop = Callable[[], bool]  # whether the user wants it to stop
CheckPath = Callable[[Path], None]  # raises `Refused` for a path that may not be read from here


@dataclasses.dataclass(frozen=True)
class Readiness:
    """Whether a captioner can begin at once.

    If not, `needs` says in a sentence what is missing. Where that is only a download, `downloads`
    says what and from where, and starting anyway fetches it first; `download_bytes` is its size, or
    None where that is not known.
    """

    ready: bool
    needs: str = ""
    download_bytes: int | None = None
    downloads: str = ""

    @property
    def can_start(self) -> bool:
        return self.ready or bool(self.downloads)


READY = Readiness(True)


class LoadedCaptioner(abc.ABC):
    """A captioner with its model in memory, on the CPU until `to` says otherwise."""

    sentences = False  # whether the words are a sentence, not tags
    batch_size = 1

    def preparation(self) -> Generator[tuple[str, float], None, None]:
        """Do what has to be done once on the device, in steps of a second or so; yields a sentence
        and the share before each of them.

        Between two steps the model may be moved, and others may have the device. Run to its end
        before the first `caption`.
        """
        yield from ()

    @abc.abstractmethod
    def caption(self, images: list[Image.Image], paths: list[Path]) -> list[list[str]]:
        """Turn PIL RGB images (upright, of any size) and the files they are from into words: for
        each its tags, or one sentence.
        """

    def to(self, device: torch.device) -> None:
        """Move the model to a device, and nothing of it stays on the one before. A captioner
        without a model has nothing to move.
        """
        return

    def close(self) -> None:
        """Give the model's memory back. Nothing else is called afterwards."""
        return


class Captioner(abc.ABC):
    """One way to turn pictures into words. Making one and asking it anything but `load` imports and
    downloads nothing heavy.
    """

    name: str  # in requests and on the command line
    title: str
    help: str
    underscores_to_spaces = False  # the common option's default for this one

    def options(self) -> list[Setting]:
        """Return its own options; the registry adds the common ones (`caption_affixes.OPTIONS`)."""
        return []

    def readiness(self, options: OptionValues) -> Readiness:
        """Say whether it can begin with these options (complete, as `read_options` returns them),
        without asking the network.

        Raises `Refused` for options that cannot be.
        """
        return READY

    @abc.abstractmethod
    def load(
        self, options: OptionValues, *, on_progress: OnProgress, should_stop: ShouldStop
    ) -> LoadedCaptioner:
        """Download what is missing and load the model on the CPU. Raises `Refused`, or `Stopped`
        when asked to stop meanwhile.
        """
