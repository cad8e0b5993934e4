"""The loop: pictures in batches through a loaded captioner, captions written as they come, the
device shared with whoever waits.

load → (take a turn → batches until somebody waits → model back to the CPU → end the turn) … → close
"""

import contextlib
import dataclasses
import gc
import logging
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch

from ..base.contracts import Host
from ..base.errors import Refused, Stopped
from ..dataset.images import read_rgb
from .caption_affixes import CaptionAffixes, build_caption
from .contracts import Captioner, LoadedCaptioner, ShouldStop
from .options import OptionValues

log = logging.getLogger(__name__)
# Between turns: without it the thread that just released a lock usually takes it again.
PAUSE_SECONDS = 0.01
GONE = "it was removed or renamed meanwhile"
Write = Callable[[dict[str, str]], Sequence[str]]


@dataclasses.dataclass(frozen=True)
class PictureToCaption:
    """A picture to caption: what it is called in reports, and its file."""

    filename: str
    path: Path


class CaptionFailure(TypedDict):
    """A picture that got no caption, as JSON."""

    filename: str
    reason: str


@dataclasses.dataclass(frozen=True)
class CaptionProgress:
    """One moment of a captioning run. `stage` is "preparing" or "captioning"; `fraction` is of the
    stage.
    """

    stage: str = "preparing"
    message: str = ""
    fraction: float = 0.0
    done: int = 0  # written, skipped and failed
    total: int = 0
    written: int = 0
    skipped: int = 0
    failed: list[CaptionFailure] = dataclasses.field(default_factory=list)
    eta_seconds: float | None = None


def caption_pictures(
    pictures: Sequence[PictureToCaption],
    captioner: Captioner,
    options: OptionValues,
    host: Host,
    write: Write,
    *,
    on_progress: Callable[[CaptionProgress], None] = lambda progress: None,
    should_stop: ShouldStop = lambda: False,
    begin: CaptionProgress | None = None,
) -> CaptionProgress:
    """Caption pictures and return how it went; `begin` counts what was left out, or known to be
    unusable, beforehand.

    `write` takes captions by file name and returns the names that it really wrote. A picture that
    cannot be read or captioned is reported by name, and the others go on. Raises `Refused` when
    nothing can begin; a stop is no error: what is done stays.
    """
    run = _Run(
        pictures,
        CaptionAffixes.of(options),
        host,
        write,
        on_progress,
        should_stop,
        begin or CaptionProgress(total=len(pictures)),
    )
    loaded = None
    try:
        with contextlib.suppress(Stopped):
            loaded = captioner.load(options, on_progress=run.prepare, should_stop=should_stop)
            run.caption(loaded)
    finally:
        if loaded is not None:
            loaded.close()
        del loaded
        free_memory()
    return run.progress


def free_memory() -> None:
    """Give what was held on the device back to whoever needs it next."""
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


class _Run:
    def __init__(
        self,
        pictures: Sequence[PictureToCaption],
        affixes: CaptionAffixes,
        host: Host,
        write: Write,
        on_progress: Callable,
        should_stop: ShouldStop,
        begin: CaptionProgress,
    ) -> None:
        self._pictures = list(pictures)
        self._affixes = affixes
        self._host = host
        self._write = write
        self._should_stop = should_stop
        self._on_progress = on_progress
        self._next = 0
        self._seconds = 0.0
        self._seen = 0.0
        self.progress = begin

    def prepare(self, message: str, fraction: float) -> None:
        self._tell(stage="preparing", message=message, fraction=fraction)

    def caption(self, loaded: LoadedCaptioner) -> None:
        """Take turns until every picture is done or somebody asks to stop."""
        with contextlib.closing(loaded.preparation()) as preparation:
            while self._next < len(self._pictures) and not self._should_stop():
                with self._host.exclusive_use():
                    loaded.to(self._host.device)
                    try:
                        self._take_turn(loaded, preparation)
                    finally:
                        loaded.to(torch.device("cpu"))  # before anyone else gets the device
                        free_memory()
                time.sleep(PAUSE_SECONDS)

    def _take_turn(
        self, loaded: LoadedCaptioner, preparation: Generator[tuple[str, float], None, None]
    ) -> None:
        """Prepare, then caption batch after batch, until all is done, somebody waits for the
        device, or a stop is asked for.
        """
        for message, fraction in preparation:
            self.prepare(message, fraction)
            if self._should_stop() or self._host.others_are_waiting():
                return
        while True:
            batch = self._pictures[self._next : self._next + loaded.batch_size]
            self._next += len(batch)
            started = time.monotonic()
            captions = self._words(loaded, batch)
            self._save(captions)
            self._count(len(batch), time.monotonic() - started)
            if (
                self._next >= len(self._pictures)
                or self._should_stop()
                or self._host.others_are_waiting()
            ):
                return

    def _words(
        self, loaded: LoadedCaptioner, batch: list[PictureToCaption]
    ) -> dict[PictureToCaption, str]:
        """Return captions by picture; what fails together is tried alone, and what fails alone is
        reported.
        """
        images = {}
        for picture in batch:
            try:
                images[picture] = read_rgb(picture.path)
            except FileNotFoundError:
                self._fail(picture, GONE)
            except Exception as error:  # Pillow raises many kinds, SyntaxError among them
                self._fail(picture, f"it cannot be read: {str(error) or type(error).__name__}")
        try:
            found = (
                loaded.caption(list(images.values()), [picture.path for picture in images])
                if images
                else []
            )
        except Exception as error:  # whatever a model does with a picture, the others go on
            if len(batch) > 1:
                log.info(
                    "a batch of %d failed (%s); its pictures are tried one by one",
                    len(batch),
                    error,
                )
                return {
                    picture: caption
                    for each in images
                    for picture, caption in self._words(loaded, [each]).items()
                }
            log.warning("%s failed", batch[0].filename, exc_info=True)
            self._fail(batch[0], f"{type(error).__name__}: {error}")
            return {}
        return {
            picture: build_caption(parts, self._affixes, sentences=loaded.sentences)
            for picture, parts in zip(images, found, strict=True)
        }

    def _save(self, captions: Mapping[PictureToCaption, str]) -> None:
        """Write captions; a picture that was removed or renamed meanwhile has failed, which the
        others do not suffer from.
        """
        captions = self._present(captions)
        named = {picture.filename: caption for picture, caption in captions.items() if caption}
        try:
            written = set(self._write(named)) if named else set()
        except (OSError, Refused):
            present = self._present(captions)
            if len(present) == len(captions):
                raise
            return self._save(present)
        left = self._present(
            {
                picture: caption
                for picture, caption in captions.items()
                if picture.filename not in written
            }
        )
        self.progress = dataclasses.replace(
            self.progress,
            written=self.progress.written + len(written),
            skipped=self.progress.skipped + len(left),
        )

    def _present(self, captions: Mapping[PictureToCaption, str]) -> dict[PictureToCaption, str]:
        """Return those of pictures that are still there; the others are reported."""
        present = {
            picture: caption for picture, caption in captions.items() if picture.path.is_file()
        }
        for picture in (picture for picture in captions if picture not in present):
            self._fail(picture, GONE)
        return present

    def _fail(self, picture: PictureToCaption, reason: str) -> None:
        failure: CaptionFailure = {"filename": picture.filename, "reason": reason[:500]}
        failed = [*self.progress.failed, failure]
        self.progress = dataclasses.replace(self.progress, failed=failed)

    def _count(self, pictures: int, seconds: float) -> None:
        """Count pictures that are done, and report progress with the time that is left.

        The time of a picture is an average that decays, so that the first batch, which is slower,
        counts less and less.
        """
        self._seconds = self._seconds * 0.9 + seconds
        self._seen = self._seen * 0.9 + pictures
        left = len(self._pictures) - self._next
        self._tell(
            stage="captioning",
            done=self.progress.total - left,
            fraction=self._next / len(self._pictures),
            eta_seconds=left * self._seconds / self._seen,
            message=f"{self._next} of {len(self._pictures)} pictures",
        )

    def _tell(self, **changes: Any) -> None:
        self.progress = dataclasses.replace(self.progress, **changes)
        self._on_progress(self.progress)
