"""Which LoRA files the jobs that run or wait are going to write: two must not write the same
one.
"""

import itertools
from pathlib import Path

from ..base.errors import ErrorCode, Refused
from ..base.paths import numbered_paths
from ..runs.output_files import plan_output
from ..settings.config import TrainConfig
from .job import JobKind
from .queue import JobQueue
from .store import JobStore


class OutputNames:
    def __init__(self, lora_dir: Path, store: JobStore, queue: JobQueue) -> None:
        self._lora_dir = lora_dir
        self._store = store
        self._queue = queue

    def refuse_taken(self, config: TrainConfig, *, besides: str = "") -> None:
        """Raise `Refused` when another job than `besides` is going to write the same file, unless
        it is to be replaced.
        """
        if config.overwrite:
            return
        file = self._file(config)
        others = [job_id for job_id, path in self._planned_files() if path == file]
        others = [job_id for job_id in others if job_id != besides]
        if others:
            raise Refused(
                f"Job {others[0]} is going to make a LoRA called {config.output_name}. Replace it,"
                f" or call the new one {self.free(config)}.",
                field="output_name",
                code=ErrorCode.NAME_TAKEN,
            )

    def free(self, config: TrainConfig) -> str:
        """Return the output name, or with the first number, that neither a file nor a job has."""
        file = self._file(config)
        planned = {path for _, path in self._planned_files()}
        for path in itertools.chain([file], numbered_paths(file)):
            if path not in planned and not self._is_taken(config, path):
                return path.stem
        raise AssertionError("numbers do not end")

    def _is_taken(self, config: TrainConfig, path: Path) -> bool:
        try:
            plan_output(config.replace(output_name=path.stem, overwrite=False), self._lora_dir)
        except Refused as error:
            return error.code == ErrorCode.NAME_TAKEN
        return False

    def _planned_files(self) -> list[tuple[str, Path]]:
        """Return the id of each training job that runs or waits, with the file it will write."""
        running = self._queue.running
        ids = ([running.job_id] if running else []) + self._store.waiting()
        rows = [self._store.get(job_id) for job_id in ids]
        return [
            (row.id, self._path(row.config.get("output_dir", ""), row.name))
            for row in rows
            if row and row.kind == JobKind.TRAINING
        ]

    def _file(self, config: TrainConfig) -> Path:
        return self._path(config.output_dir, config.output_name)

    def _path(self, folder: str, name: str) -> Path:
        return Path(folder or self._lora_dir).resolve() / f"{name}.safetensors"
