"""Label lists of `clip-labels`: a set is a folder of text files, a file is a group, a line is a
label. Users edit and replace them.

    # a comment
    prompt: a photo of {}          what the model is shown; several are averaged; without one it is
    the label alone
    portrait                       written and shown
    rain = rainy weather           `rain` is written, `rainy weather` is shown
    - = an ordinary day            wins like any other, but nothing is written

Our sets lie in the package; a user's copy of the same name, in the data folder, takes their place
until it is deleted. While a set is replaced the one before lies beside it as `.name.old`; after a
power cut it comes back where the new one did not get its place.
"""

import contextlib
import dataclasses
import re
import shutil
import threading
import uuid
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TypedDict

from ..base.errors import ErrorCode, Refused
from ..base.text import is_plain_text, is_windows_device

TITLES = {"default": "Photos and art", "shapes": "Embedded demo: shapes and colours"}
MOST_LABELS = 3000
LARGEST_GROUP_BYTES = 200_000
MOST_GROUPS = 40
NOTHING = "-"


@dataclasses.dataclass(frozen=True)
class Label:
    """What is written into the caption ("" for nothing), and what the model is shown in place of
    it.
    """

    words: str
    shown: str


@dataclasses.dataclass(frozen=True)
class LabelGroup:
    """Labels of which the best is chosen; each is put into every prompt."""

    name: str
    prompts: tuple[str, ...]
    labels: tuple[Label, ...]

    def prompts_for(self, label: Label) -> tuple[str, ...]:
        return tuple(prompt.replace("{}", label.shown) for prompt in self.prompts)


def parse_group(name: str, text: str) -> LabelGroup:
    """Read a group from its file's text; raises `Refused` naming group and line."""
    prompts, labels = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.lower().startswith("prompt:"):
            prompts.append(_prompt(name, number, line.partition(":")[2].strip()))
        else:
            labels.append(_label(line))
    if not 2 <= len(labels) <= MOST_LABELS:
        raise _refused(
            f"The group {name} has {len(labels)} labels; it needs 2 to {MOST_LABELS}, one on each"
            " line, to choose from."
        )
    return LabelGroup(name, tuple(prompts) or ("{}",), tuple(labels))


class LabelGroupView(TypedDict):
    name: str
    text: str


class LabelSetView(TypedDict):
    """A label set as JSON; `changed`: it is the user's, not ours."""

    name: str
    title: str
    editable: bool
    changed: bool
    path: str
    groups: list[LabelGroupView]


class LabelSets:
    """Ours and the user's. `home` is the folder of the user's; nothing is written before the first
    change.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._ours = Path(str(resources.files("lora_trainer"))) / "captioning" / "labels"
        # Held while a set has no place, and while one gets its place back.
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        return sorted(
            set(_folders(self._ours)) | set(self._theirs()),
            key=lambda name: (name not in TITLES, name),
        )

    def title(self, name: str) -> str:
        return TITLES.get(name, name)

    def all(self) -> list[LabelSetView]:
        """Describe every set."""
        return [self.describe(name) for name in self.names()]

    def describe(self, name: str) -> LabelSetView:
        folder = self.path(name)
        groups: list[LabelGroupView] = [
            {
                "name": _group_name(file),
                "text": file.read_text(encoding="utf-8-sig", errors="replace"),
            }
            for file in _files(folder)
        ]
        return {
            "name": name,
            "title": self.title(name),
            "editable": True,
            "changed": folder.parent == self._home,
            "path": str(folder),
            "groups": groups,
        }

    def groups(self, name: str) -> list[LabelGroup]:
        """Read a set; raises `Refused` for one that is not there or cannot be used."""
        groups = [
            parse_group(group["name"], group["text"]) for group in self.describe(name)["groups"]
        ]
        if not groups:
            raise _refused(
                f"The label list {name} is empty: {self.path(name)} holds no .txt files."
            )
        return groups

    def path(self, name: str) -> Path:
        """Return the folder of a set, the user's first; raises `Refused` (code "not_found")."""
        if name in self._theirs():
            return self._home / name
        if name in _folders(self._ours):
            return self._ours / name
        raise Refused(
            f"There is no label list {name[:80]!r}; there are {', '.join(self.names())}.",
            field="labels",
            code=ErrorCode.NOT_FOUND,
        )

    def save(self, name: str, groups: Mapping[str, str]) -> LabelSetView:
        """Make a set of these groups, in their order; all are checked before anything is written.
        Raises `Refused`.
        """
        _check_name(name, "name")
        if not 1 <= len(groups) <= MOST_GROUPS:
            raise _refused(
                f"A label list has 1 to {MOST_GROUPS} groups; this one has {len(groups)}."
            )
        for group, text in groups.items():
            _check_name(group, "groups")
            if (
                not isinstance(text, str)
                or len(text.encode("utf-8", "replace")) > LARGEST_GROUP_BYTES
                or not is_plain_text(text)
            ):
                raise _refused(
                    f"The group {group} is not text of at most {LARGEST_GROUP_BYTES // 1000} kB."
                )
            parse_group(group, text)
        self._replace(name, groups)
        return self.describe(name)

    def restore(self, name: str) -> list[str]:
        """Remove the user's copy of a set, so that ours counts again; returns the names that are
        left. Raises `Refused`.
        """
        if name not in self._theirs():
            self.path(name)
            raise Refused(
                f"The label list {name} is as it came; there is nothing to restore.",
                field="name",
                code=ErrorCode.NOTHING_TO_RESTORE,
            )
        self._remove(self._home / name)
        return self.names()

    def _theirs(self) -> list[str]:
        """Return the user's sets, after what a killed process left half replaced has got its place
        back.
        """
        with self._lock:
            for old in self._home.glob(".*.old"):
                self._settle(old, self._home / old.name[1 : -len(".old")])
        return _folders(self._home)

    def _settle(self, old: Path, place: Path) -> None:
        """Give a set that was being replaced its name back, or remove it where the new one is."""
        with contextlib.suppress(OSError):  # another process has just done so
            if place.exists():
                self._remove(old)
            else:
                old.rename(place)

    def _replace(self, name: str, groups: Mapping[str, str]) -> None:
        """Write all files into a new folder and give it the name last, so that a set is never half,
        and never gone.
        """
        self._theirs()
        self._home.mkdir(parents=True, exist_ok=True)
        fresh = self._home / f".{uuid.uuid4().hex}"
        place = self._home / name
        old = self._home / f".{name}.old"
        fresh.mkdir()
        try:
            for number, (group, text) in enumerate(groups.items(), start=1):
                (fresh / f"{number:02}-{group}.txt").write_text(text, encoding="utf-8")
            with self._lock:
                if place.exists():
                    place.rename(old)
                fresh.rename(place)
        except OSError as error:
            shutil.rmtree(fresh, ignore_errors=True)
            self._theirs()
            raise Refused(
                f"The label list {name} cannot be saved in {self._home}:"
                f" {error.strerror or error}.",
                code=ErrorCode.CANNOT_SAVE,
            ) from error
        self._theirs()

    def _remove(self, folder: Path) -> None:
        """Delete a folder under a name that nothing looks for, so that a half of it is never
        read.
        """
        shutil.rmtree(folder.rename(self._home / f".{uuid.uuid4().hex}"), ignore_errors=True)


def _folders(home: Path) -> list[str]:
    if not home.is_dir():
        return []
    return [
        item.name
        for item in home.iterdir()
        if item.is_dir() and not item.name.startswith((".", "_"))
    ]


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.txt") if not file.name.startswith("."))


def _group_name(file: Path) -> str:
    """Return a group's name: its file's without the number in front, which only gives its place in
    the caption.
    """
    return re.sub(r"^\d+[-_ ]", "", file.stem)


def _prompt(name: str, number: int, prompt: str) -> str:
    if prompt.count("{}") != 1:
        raise _refused(
            f"Line {number} of the group {name}: a prompt needs one {{}}, where the label goes:"
            f" {prompt[:80]!r}."
        )
    return prompt


def _label(line: str) -> Label:
    words, given, shown = (part.strip() for part in line.partition("="))
    if not given or not shown:
        return Label("" if words == NOTHING else words, words)
    return Label("" if words == NOTHING else words, shown)


def _check_name(name: str, field: str) -> None:
    if (
        not isinstance(name, str)
        or not re.fullmatch(r"[^\W_][\w .()+-]{0,60}", name)
        or name.endswith((".", " "))
    ):
        raise Refused(
            f"{str(name)[:80]!r} cannot be the name of a label list or group: letters, digits,"
            " spaces, - and _, at most 60.",
            field=field,
            code=ErrorCode.BAD_NAME,
        )
    if is_windows_device(name):
        raise Refused(
            f"{name!r} cannot be the name of a label list or group: Windows keeps it for itself.",
            field=field,
            code=ErrorCode.BAD_NAME,
        )


def _refused(message: str) -> Refused:
    return Refused(message, field="groups", code=ErrorCode.BAD_LABELS)
