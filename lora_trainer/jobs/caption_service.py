"""Automatic captions: the captioners with their label lists, and the jobs that write captions."""

from collections.abc import Callable, Sequence

from ..base.contracts import Host
from ..base.paths import PathRules
from ..captioning.labels import LabelSets
from ..captioning.registry import Captioners
from ..editor.library import Library
from ..settings.setting import WrittenSettings
from .captioning_job import read_ready, select
from .job import CaptioningConfig, JobFigures, JobKind, NewJob


class CaptionService:
    """`add_job` puts a job into the queue and returns its id."""

    def __init__(
        self,
        host: Host,
        library: Library,
        path_rules: PathRules,
        *,
        add_job: Callable[[NewJob], str],
    ) -> None:
        self._library = library
        self._add_job = add_job
        self.labels = LabelSets(host.data_dir / "labels")
        self.captioners = Captioners(
            host.data_dir, self.labels, path_rules.check, host.captioners()
        )

    def start(
        self,
        dataset: str,
        captioner: str,
        *,
        options: WrittenSettings | None = None,
        overwrite: bool = False,
        filenames: Sequence[str] | None = None,
    ) -> str:
        """Put a job that writes captions into the queue and return its id.

        Without `overwrite` only pictures without a caption, and those whose caption a captioner
        wrote, get a new one; the job chooses them when it begins. Raises `Refused`, before anything
        is loaded, for whatever is wrong.
        """
        _, values = read_ready(self.captioners, captioner, options or {})
        selection = select(self._library, dataset, filenames, overwrite=overwrite)
        config: CaptioningConfig = {
            "dataset": dataset,
            "captioner": captioner,
            "options": values,
            "overwrite": overwrite,
            "filenames": None if filenames is None else list(filenames),
        }
        figures: JobFigures = {"pictures": len(selection.pictures)}
        return self._add_job(NewJob(dataset, JobKind.CAPTIONING, config, figures))

    def start_again(self, config: WrittenSettings, changes: WrittenSettings) -> str:
        """Do the same with the config of an earlier job and changes of it."""
        values = {**config, **changes}
        return self.start(
            values["dataset"],
            values["captioner"],
            options=values["options"],
            overwrite=values["overwrite"],
            filenames=values.get("filenames"),
        )
