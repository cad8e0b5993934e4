"""The job that captions the pictures of a data set: which of them, and how it reports."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import cast

from ..base.contracts import Host
from ..base.errors import ErrorCode, Refused
from ..base.files import write_atomically
from ..base.text import to_json
from ..captioning.contracts import Captioner
from ..captioning.options import OptionValues
from ..captioning.registry import Captioners
from ..captioning.run import (
    GONE,
    CaptionFailure,
    CaptionProgress,
    PictureToCaption,
    caption_pictures,
)
from ..dataset.scan import read_kohya_name
from ..editor.editor import PictureRow
from ..editor.library import Library
from ..settings.setting import WrittenSettings
from .job import CaptioningConfig, JobEnd, JobKind, JobRow, JobState, JobUpdate
from .store import JobStore
from .worker import Job


@dataclasses.dataclass(frozen=True)
class Selection:
    """The pictures that get a caption, how many are skipped because a person captioned them, and
    which cannot be used.
    """

    pictures: list[PictureToCaption]
    skipped: int
    failed: list[CaptionFailure]

    def progress(self, message: str) -> CaptionProgress:
        done = self.skipped + len(self.failed)
        return CaptionProgress(
            message=message,
            total=len(self.pictures) + done,
            done=done,
            skipped=self.skipped,
            failed=list(self.failed),
        )


def select(
    library: Library,
    dataset: str,
    filenames: Sequence[str] | None,
    *,
    overwrite: bool,
    missing_ok: bool = False,
) -> Selection:
    """Choose among the pictures asked for; `filenames` None means all. With `missing_ok` those that
    are gone count as failed.

    Raises `Refused` for a data set or a picture that is not there, and when there is none.
    """
    found = library.describe(dataset)
    rows = {row["filename"]: row for row in found["pictures"]}
    problems = {row["filename"]: row["reason"] for row in found["problems"]}
    names = list(dict.fromkeys([*rows, *problems] if filenames is None else filenames))
    unknown = [name for name in names if name not in rows and name not in problems]
    if unknown and not missing_ok:
        raise Refused(
            f"There is no picture {unknown[0][:200]!r} in this data set.",
            field="filenames",
            code=ErrorCode.NOT_FOUND,
        )
    problems.update((name, GONE) for name in unknown)
    if not names:
        raise Refused(
            "There is no picture to caption.", field="filenames", code=ErrorCode.NO_PICTURES
        )
    usable = [rows[name] for name in names if name in rows]
    chosen = [row["filename"] for row in usable if overwrite or _lacks_caption(row)]
    return Selection(
        pictures=[PictureToCaption(name, library.picture_path(dataset, name)) for name in chosen],
        skipped=len(usable) - len(chosen),
        failed=[{"filename": name, "reason": problems[name]} for name in names if name not in rows],
    )


def _lacks_caption(row: PictureRow) -> bool:
    """Tell whether no person captioned a picture; the class words of its folder (`10_cat`) do not
    count.
    """
    if not row["caption"] or row["automatic"]:
        return True
    _, class_words = read_kohya_name(PurePosixPath(row["filename"]).parent) or (1, "")
    return not row["version"] and row["caption"] == class_words


def read_ready(
    captioners: Captioners, name: str, options: WrittenSettings
) -> tuple[Captioner, OptionValues]:
    """Return a captioner that can start and its complete options; raises `Refused` otherwise."""
    captioner, values = captioners.read(name, options)
    readiness = captioner.readiness(values)
    if not readiness.can_start:
        raise Refused(readiness.needs, field="captioner", code=ErrorCode.NOT_READY)
    return captioner, values


class CaptioningJob(Job):
    kind = JobKind.CAPTIONING
    memory_advice = "Choose a smaller model or batch size, or close other programs."

    def __init__(
        self,
        row: JobRow,
        captioners: Captioners,
        library: Library,
        host: Host,
        store: JobStore,
        folder: Path,
    ) -> None:
        super().__init__(row.id, store, folder)
        self._config = cast(CaptioningConfig, row.config)
        self._captioners = captioners
        self._library = library
        self._host = host
        self._progress = CaptionProgress(message="Looking for the pictures")

    def _figures(self) -> JobUpdate:
        figures = cast(JobUpdate, dataclasses.asdict(self._progress))
        figures["dataset"] = self._config["dataset"]
        figures["captioner"] = self._config["captioner"]
        return figures

    @contextlib.contextmanager
    def _files(self) -> Iterator[None]:
        write_atomically(self.folder / "config.json", to_json(self._config, indent=2))
        yield

    def _work(self) -> JobEnd:
        config = self._config
        captioner, options = read_ready(self._captioners, config["captioner"], config["options"])
        selection = select(
            self._library,
            config["dataset"],
            config.get("filenames"),
            overwrite=config["overwrite"],
            missing_ok=True,
        )
        self._report(selection.progress(f"Preparing {captioner.title}"))
        if selection.pictures:
            self._caption(selection.pictures, captioner, options)
        progress = self._progress
        if progress.failed and not progress.written and not self.control.should_stop():
            raise Refused(
                f"None of {len(progress.failed)} pictures could be captioned."
                f" {progress.failed[0]['filename']}: {progress.failed[0]['reason']}"
            )
        self._progress = dataclasses.replace(progress, eta_seconds=None)
        state = JobState.STOPPED if progress.done < progress.total else JobState.FINISHED
        return JobEnd(state, _summary(progress))

    def _caption(
        self, pictures: Sequence[PictureToCaption], captioner: Captioner, options: OptionValues
    ) -> None:
        label = f"Automatic captions: {captioner.name}"
        with self._library.captioning(self._config["dataset"], label) as write:
            caption_pictures(
                pictures,
                captioner,
                options,
                self._host,
                functools.partial(write, keep_manual=not self._config["overwrite"]),
                on_progress=self._report,
                should_stop=self.control.should_stop,
                begin=self._progress,
            )

    def _report(self, progress: CaptionProgress) -> None:
        self._progress = progress
        self._save(progress.stage)


def _summary(progress: CaptionProgress) -> str:
    kept = f", {progress.skipped} left as they were" if progress.skipped else ""
    failed = f", {len(progress.failed)} failed" if progress.failed else ""
    return f"{progress.written} captions written{kept}{failed}"
