"""Which LoRA names are taken by jobs that run or wait: two of them must not write the same file."""

import itertools
from pathlib import Path

from ..base.errors import Refused
from ..base.paths import numbered_paths
from ..runs.plan import plan_output
from ..settings.config import TrainConfig
from .queue import JobQueue
from .store import JobStore


class Names:
    def __init__(self, lora_dir: Path, store: JobStore, queue: JobQueue) -> None:
        self._lora_dir, self._store, self._queue = lora_dir, store, queue

    def refuse_taken(self, config: TrainConfig, *, besides: str = "") -> None:
        """Raise `Refused` when another job than `besides` is going to write the same file, unless
        it is to be replaced.
        """
        wanted = self._file(config)
        other = next(
            (job_id for job_id, path in self._coming() if path == wanted and job_id != besides),
            None,
        )
        if other and not config.overwrite:
            raise Refused(
                f"Job {other} is going to make a LoRA called {config.output_name}. Replace it, or"
                f" call the new one {self.free(config)}.",
                field="output_name",
                code="name_taken",
            )

    def free(self, config: TrainConfig) -> str:
        """Return the name itself, or with the first number, under which a run could begin: neither
        a file nor a job has it.
        """
        taken, path = {path for _, path in self._coming()}, self._file(config)
        return next(
            each
            for each in itertools.chain([path], numbered_paths(path))
            if each not in taken and not self._is_taken(config, each)
        ).stem

    def _is_taken(self, config: TrainConfig, path: Path) -> bool:
        try:
            plan_output(config.replace(output_name=path.stem, overwrite=False), self._lora_dir)
        except Refused as error:
            return error.code == "name_taken"
        return False

    def _coming(self) -> list[tuple[str, Path]]:
        """List the jobs that run or wait, each with the file it will write."""
        running = self._queue.running
        rows = [
            self._store.get(job_id)
            for job_id in ([running.job_id] if running else []) + self._store.waiting()
        ]
        return [
            (row["id"], self._place(row["config"].get("output_dir", ""), row["name"]))
            for row in rows
            if row and row["kind"] == "training"
        ]

    def _file(self, config: TrainConfig) -> Path:
        return self._place(config.output_dir, config.output_name)

    def _place(self, folder: str, name: str) -> Path:
        return Path(folder or self._lora_dir).resolve() / f"{name}.safetensors"
