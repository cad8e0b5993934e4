"""The LoRA files that pictures of the standalone host may call by name."""

from pathlib import Path

from ...base.errors import ErrorCode, Refused

MOST_NAMES = 8  # in an error message


class LoraFiles:
    """The LoRAs of one folder, and those that were registered, which go first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._registered: dict[str, Path] = {}

    def register(self, path: Path) -> None:
        self._registered[path.stem] = path

    def find(self, name: str) -> Path:
        """Return the file of a LoRA by its name; raises `Refused` (code "no_lora")."""
        registered = self._registered.get(name)
        if registered and registered.is_file():
            return registered
        files = sorted(self._folder.rglob("*.safetensors")) if self._folder.is_dir() else []
        for file in files:
            if file.stem == name:
                return file
        names = ", ".join(sorted({file.stem for file in files})[:MOST_NAMES]) or "none yet"
        raise Refused(
            f"There is no LoRA named {name!r} in {self._folder} (there: {names}).",
            field="prompt",
            code=ErrorCode.NO_LORA,
        )
