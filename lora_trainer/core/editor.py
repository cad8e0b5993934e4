"""One data set being edited: captions, single and many at once, and its files. Every edit is a step of `History` and can be undone.

The truth is on disk, in the .txt beside each picture; whoever edits says which version of it they saw, and nothing is written over another.
"""
import contextlib
import dataclasses
import hashlib
import os
import re
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from . import checks, pictures, tables
from .captions import LARGEST_CAPTION_BYTES, can_be_caption, content_of, one_line, sidecar, split_tags, to_bytes, with_trigger
from .config import is_plain_text
from .dataset import PICTURE_ENDINGS, Picture, Problem, inspect, is_picture_file, picture_folders, read_kohya_name, scan
from .edits import plan_edit
from .encodings import ENCODINGS
from .errors import Refused
from .examination import Examination, near_duplicates
from .history import Change, ChangedMeanwhile, History, Outcome, digest

WINDOWS_OWN = r"(?i)(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[\d\u00b9\u00b2\u00b3]) *(\..*)?"      # names of devices, whatever ending they have
CountTokens = Callable[[Sequence[str]], "list[int] | None"]


@dataclasses.dataclass(frozen=True)
class Sidecar:
    """A picture's caption file: its path in the data set, its content (None: there is none)."""
    path: str
    content: bytes | None

    @property
    def version(self) -> str:
        """A name for the exact content; "" when there is no file."""
        return "" if self.content is None else digest(self.content)


class DataSetEditor:
    """The pictures in `folder`, as a person edits them; history, trash and thumbnails are kept in `home`. Safe from any thread.

    `count_tokens` counts CLIP's tokens of each caption, or returns None while it is not ready to.
    """

    def __init__(self, name: str, folder: Path, home: Path, *, count_tokens: CountTokens | None = None) -> None:
        self.name, self.folder, self._count_tokens = name, folder, count_tokens
        self._lock = threading.RLock()
        self._history, self._examination = History(folder, home), Examination(home)

    def alive(self) -> bool:
        """Tell whether what it keeps is still on disk; a user may have deleted the folder and made it anew."""
        return self._history.alive()

    def close(self) -> None:
        self._examination.close()
        self._history.close()

    # --- What is there ---------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Return `{name, path, revision, history, trash, pictures, problems}`; pictures by their headers, without decoding any."""
        revision = self.revision()
        found, problems = self._scan()
        automatic = self._history.automatic()
        return {"name": self.name, "path": str(self.folder), "revision": revision, "history": self._history.labels(),
                "trash": str(self._history.trash) if self._history.trash.is_dir() else None,
                "pictures": [row for picture in found if (row := self._row(picture, automatic))],
                "problems": [{"filename": self._relative(problem.path), "reason": problem.reason} for problem in problems]}

    def revision(self) -> str:
        """Name the state of pictures, captions and tables on disk, from what the folders' entries tell."""
        return _name_of(self._entries())

    def _entries(self) -> dict[str, str]:
        """Return what the folders' entries tell of each file, by its path."""
        found = {}
        for place in self._places():
            with os.scandir(place) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):                   # it may go while we look
                        if not entry.name.startswith(".") and entry.is_file():
                            stat = entry.stat()
                            found[self._relative(Path(entry.path))] = f"{stat.st_mtime_ns}/{stat.st_size}"
        return found

    def state(self) -> dict[str, Any]:
        return {"revision": self.revision(), "history": self._history.labels()}

    def captions(self) -> dict[str, str]:
        """Return every usable picture's caption, by file name."""
        return {self._relative(picture.path): picture.caption for picture in self._scan()[0]}

    def picture_path(self, filename: str) -> Path:
        """Return a picture's path if it really lies in the folder (or a kohya subfolder): no `..`, no link that leads out."""
        path = self.folder / filename
        inside = path.parent == self.folder or (path.parent.parent == self.folder and read_kohya_name(path.parent))
        if not inside or ".." in Path(filename).parts or not is_picture_file(path) or not self._is_there(path):
            raise Refused(f"There is no picture {filename[:200]!r} in this data set.", field="filename", code="not_found")
        return path

    def _is_there(self, path: Path) -> bool:
        try:
            return path.is_file() and path.resolve().is_relative_to(self.folder.resolve())
        except (OSError, ValueError):                                              # a name that is too long, or has a NUL
            return False

    # --- Captions --------------------------------------------------------------------------------------------------------

    def set_captions(self, changes: Mapping[str, str], *, versions: Mapping[str, str] | None = None, label: str = "") -> dict[str, Any]:
        """Save captions as one step, all names and versions checked before the first is written.

        Raises `Refused`: code "not_found", "bad_value", or "changed_meanwhile" with what is there now, when a version is not on disk any more.
        """
        with self._lock:
            sidecars = {filename: self._sidecar(filename) for filename in changes}
            for filename, caption in changes.items():
                _check_caption(filename, caption)
            self._check_versions(sidecars, versions or {})
            wanted = {filename: to_bytes(caption) for filename, caption in changes.items()}
            _check_shared(sidecars, wanted)
            label = label or (f"Caption of {next(iter(changes))}" if len(changes) == 1 else f"{len(changes)} captions")
            return self._run(label, [Change(found.path, found.content, wanted[filename]) for filename, found in sidecars.items()
                                     if found.content != wanted[filename]])

    def bulk_edit(self, action: str, settings: Mapping[str, Any], *, filenames: Sequence[str] | None = None, preview: bool = False,
                  versions: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Edit all or some captions by an action of edits.py, as one step; `preview` returns what would change and writes nothing."""
        with self._lock:
            seen, everything = self._versions(), self.captions()
            captions = everything if filenames is None else {name: everything[name] for name in self._known(filenames, everything)}
            changes = plan_edit(action, captions, settings, everything=everything)
            if preview:
                rows = [{"filename": name, "before": captions[name], "after": after, "version": seen.get(name, "")} for name, after in changes.items()]
                return {"changes": rows, "count": len(rows), "unchanged": len(captions) - len(rows)}
            return {**self.set_captions(changes, versions={**seen, **(versions or {})}, label=_label(action, settings, len(changes))), "count": len(changes)}

    def import_table(self, name: str, data: bytes, *, encoding: str | None = None, apply: bool = False,
                     versions: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Read captions from a table and say what it would change, line by line; `apply` writes it, as one step. Bad lines are left out."""
        with self._lock:
            seen, captions = self._versions(), self.captions()
            table = tables.parse_table(name, data, encoding=encoding or tables.fitting_encoding(name, data, captions))
            rows, unmatched = tables.match_rows(table, captions)
            unmatched += self._drop_rivals(rows) + _drop_empty(rows, captions)
            changed = {filename: row for filename, row in rows.items() if row.caption != captions[filename]}
            report = {"encoding": table.encoding, "encodings": list(ENCODINGS), "rows": len(table.rows) + len(table.problems), "unchanged": len(rows) - len(changed),
                      "changes": [{"line": row.line, "filename": filename, "before": captions[filename], "after": row.caption,
                                   "version": seen.get(filename, "")} for filename, row in changed.items()],
                      "problems": [dataclasses.asdict(problem) for problem in sorted((*table.problems, *unmatched), key=lambda problem: problem.line)]}
            if not apply:
                return report
            done = self.set_captions({filename: row.caption for filename, row in changed.items()}, versions={**seen, **(versions or {})}, label=f"Captions from {name}")
            return {**report, **done}

    def export_table(self, format: str) -> bytes:
        """Return every caption as a metadata.csv or metadata.jsonl."""
        if format not in ("csv", "jsonl"):
            raise Refused(f"The format {format[:20]!r} is not known; expected csv or jsonl.", field="format", code="bad_value")
        return (tables.format_csv if format == "csv" else tables.format_jsonl)(self.captions())

    @contextlib.contextmanager
    def captioning(self, label: str) -> Iterator[Callable[..., list[str]]]:
        """Write captions of a captioner, together one step; yields `write({filename: caption}, keep_manual=True)`.

        It returns the pictures that were written; one that went away meanwhile is not. With `keep_manual` a caption that a person wrote, or changed, by then is left alone.
        """
        with self._history.step(label) as apply:
            def write(captions: Mapping[str, str], *, keep_manual: bool = True) -> list[str]:
                with self._lock:
                    changes = self._automatic_changes(captions, keep_manual=keep_manual)
                    made = {change.path for change in apply(list({change.path: change for change in changes.values()}.values()), automatic=True)}
                    return [filename for filename, change in changes.items() if change.path in made]
            yield write

    def undo(self, *, if_changed: str = "refuse") -> dict[str, Any]:
        return self._turn(self._history.undo, if_changed)

    def redo(self, *, if_changed: str = "refuse") -> dict[str, Any]:
        return self._turn(self._history.redo, if_changed)

    def _automatic_changes(self, captions: Mapping[str, str], *, keep_manual: bool) -> dict[str, Change]:
        automatic, changes = self._history.automatic(), {}
        for filename, caption in captions.items():
            with contextlib.suppress(Refused):                                     # the picture was deleted or renamed while it was looked at
                found = self._sidecar(filename)
                manual = found.content is not None and (found.path, found.version) not in automatic and bool(one_line(found.content))
                if not (keep_manual and manual):
                    changes[filename] = Change(found.path, found.content, to_bytes(caption))
        return changes

    # --- Files -----------------------------------------------------------------------------------------------------------

    def rename(self, filename: str, to: str) -> dict[str, Any]:
        """Rename a picture and its caption file; the ending stays. Raises `Refused`, code "exists" when the name is taken."""
        with self._lock:
            path, found = self.picture_path(filename), self._sidecar(filename)
            if re.search(r"[\\/]", to):
                raise Refused(f"{to[:80]!r} names a folder; pictures stay in theirs. Give a name without slashes.", field="to", code="bad_name")
            stem = to[:-len(path.suffix)] if to.lower().endswith(path.suffix.lower()) else to
            new = path.with_name(safe_filename(f"{stem.strip()}{path.suffix}"))
            if new == path:
                return {**self._edited("", [], self._entries()), "filename": filename}
            self._refuse_taken(new)
            key, target = self._history.put_aside(filename), self._relative(new)
            changes = [Change(filename, key, None, filename), Change(target, None, key, filename)]
            content = to_bytes(tables.find_table(path.parent).get(path.name, "")) or None if found.content is None else found.content
            if content is not None:
                changes += [*self._without_caption(found, [filename], bundle=filename), Change(self._relative(sidecar(new)), None, content, filename)]
            automatic = (found.path, found.version) in self._history.automatic()
            return {**self._run(f"Rename {path.name} to {new.name}", changes, automatic=automatic), "filename": target}

    def _refuse_taken(self, new: Path) -> None:
        """A name is taken by a file, or by a picture of the same stem, whose caption it would become."""
        rivals = self._pictures_by_sidecar().get(self._relative(sidecar(new)), [])
        taken = new.name if new.exists() else sidecar(new).name if sidecar(new).exists() else rivals[0] if rivals else None
        if taken:
            raise Refused(f"There is already {taken} in this data set.", field="to", code="exists")

    def rotate(self, filenames: Sequence[str], degrees: int) -> dict[str, Any]:
        """Turn pictures clockwise by 90, 180 or 270 degrees; undo brings back the very files of before."""
        with self._lock:
            turned = {filename: pictures.rotated(self.picture_path(filename), degrees) for filename in dict.fromkeys(filenames)}
            changes = [Change(filename, self._history.put_aside(filename), self._history.stage(filename, data)) for filename, data in turned.items()]
            return self._run(f"Rotate {_count(turned)}", changes)

    def discard(self, filenames: Sequence[str]) -> dict[str, Any]:
        """Move pictures, with their captions, into the trash folder."""
        with self._lock:
            paths = [self.picture_path(filename) for filename in dict.fromkeys(filenames)]
            going, changes = [self._relative(path) for path in paths], []
            for filename in going:
                changes += [Change(filename, self._history.put_aside(filename), None, filename),
                            *self._without_caption(self._sidecar(filename), going, bundle=filename)]
            return self._run(f"Delete {_count(paths)}", changes)

    # --- Pictures and checks ---------------------------------------------------------------------------------------------

    def empty_trash(self) -> int:
        """Delete what lies in the trash folder, so that those steps cannot be undone any more; returns the bytes. Raises OSError."""
        with self._lock:
            files = [path for path in self._history.trash.glob("*") if path.is_file() and not path.is_symlink()] if self._history.trash.is_dir() else []
            freed = sum(path.stat().st_size for path in files)
            for path in files:
                path.unlink()
        return freed

    def thumbnail(self, filename: str) -> Path:
        """Return a small JPEG of a picture, made once; raises `Refused` for anything that is not a picture of this data set."""
        return self._examination.thumbnail(self.picture_path(filename))

    def preview(self, filename: str) -> bytes:
        return pictures.preview(self.picture_path(filename))

    def trained_view(self, filename: str, wanted: checks.Wanted) -> bytes:
        """Return a JPEG of what the trainer gets from a picture."""
        facts = inspect(path := self.picture_path(filename), thorough=False)
        return pictures.trained_view(path, checks.bucket_for(facts.width, facts.height, wanted))

    def check(self, wanted: checks.Wanted) -> dict[str, Any]:
        """Return `{ready, examined, total, summary, pictures}`: remarks and crops; starts the examination of what was not looked at yet."""
        found, problems = self._scan()
        findings = self._examination.findings([picture.path for picture in found])
        self._examination.start([picture.path for picture in found if picture.path not in findings])
        names = {picture.path: self._relative(picture.path) for picture in found}
        duplicates = near_duplicates({names[path]: finding for path, finding in findings.items()})
        tokens = self._count_tokens([with_trigger(picture.caption, wanted.trigger_word) for picture in found]) if self._count_tokens and found else None
        shared = self._sharing()
        rows, remarks = {}, []
        for number, picture in enumerate(found):
            name, size = names[picture.path], {"width": picture.width, "height": picture.height}
            crop = checks.crop_for(**size, wanted=wanted)
            own = {"tokens": tokens[number] if tokens else None, "duplicates": duplicates.get(name, [])}
            remarks.append(checks.remarks_on(**size, **own, caption=picture.caption, shared=shared.get(name, []), crop=crop, wanted=wanted))
            rows[name] = {**own, "remarks": [dataclasses.asdict(remark) for remark in remarks[-1]], "crop": crop}
        counted = tokens is not None or not self._count_tokens or not found
        return {"ready": len(findings) == len(found) and counted, "examined": len(findings), "total": len(found),
                "summary": checks.summary(remarks, len(problems)), "pictures": rows}

    def _sharing(self) -> dict[str, list[str]]:
        """Return, for each picture whose caption file is also another's, those others."""
        return {name: [other for other in names if other != name] for names in self._pictures_by_sidecar().values() if len(names) > 1 for name in names}

    # --- Inside ----------------------------------------------------------------------------------------------------------

    def _scan(self) -> tuple[list[Picture], list[Problem]]:
        self._examination.findings(list(self._picture_files()))                    # what is damaged is known from there
        found, problems = scan(self.folder, thorough=False)
        reasons = {picture.path: self._reason_against(picture.path) for picture in found}
        return [picture for picture in found if not reasons[picture.path]], problems + [Problem(path, reason) for path, reason in reasons.items() if reason]

    def _reason_against(self, path: Path) -> str:
        """Say why a picture cannot be edited here though it can be read; nothing when it can."""
        if not self._inside(path):
            return f"{path.name} is a link, or in a folder that is one, that leads out of the data set."
        return "" if is_plain_text(str(path)) else "Its name is not in UTF-8; rename it."

    def _inside(self, path: Path) -> bool:
        linked = path.is_symlink() or (path.parent != self.folder and path.parent.is_symlink())
        return not linked or path.resolve().is_relative_to(self.folder.resolve())

    def _places(self) -> list[Path]:
        """The folder itself and kohya's subfolders; raises `Refused` when it is not there any more."""
        try:
            return picture_folders(self.folder)
        except OSError as error:
            raise Refused(f"The folder {str(self.folder)[:200]} cannot be read: {error.strerror or error}.", code="no_folder") from error

    def _picture_files(self) -> Iterator[Path]:
        files = (path for place in self._places() for path in place.iterdir())
        return (path for path in files if is_picture_file(path) and not self._reason_against(path))

    def _row(self, picture: Picture, automatic: set[tuple[str, str]]) -> dict[str, Any] | None:
        """Describe a picture; None when it went while we looked."""
        filename = self._relative(picture.path)
        try:
            found, stamp = self._sidecar(filename), picture.path.stat().st_mtime_ns // 1_000_000
        except (Refused, FileNotFoundError):
            return None
        return {"filename": filename, "width": picture.width, "height": picture.height, "caption": picture.caption, "tags": split_tags(picture.caption),
                "version": found.version, "automatic": (found.path, found.version) in automatic, "repeats": picture.repeats,
                "warnings": list(picture.warnings), "thumbnail": f"datasets/{quote(self.name)}/thumbnails/{quote(filename)}?{stamp}"}

    def _sidecar(self, filename: str) -> Sidecar:
        path = sidecar(self.picture_path(filename))
        return Sidecar(self._relative(path), content_of(path))

    def _without_caption(self, found: Sidecar, going: Sequence[str], *, bundle: str) -> list[Change]:
        """The change that takes a caption file away, unless a picture that stays needs it, too."""
        needed = set(self._pictures_by_sidecar().get(found.path, ())) - set(going)
        return [] if found.content is None or needed else [Change(found.path, found.content, None, bundle)]

    def _versions(self) -> dict[str, str]:
        """Return every picture's version, to be read before the captions: what changes in between is then seen as changed."""
        return {filename: self._sidecar(filename).version for names in self._pictures_by_sidecar().values() for filename in names}

    def _drop_rivals(self, rows: dict[str, tables.Row]) -> list[tables.LineProblem]:
        """Take out rows that give another caption to a caption file that an earlier row gave one."""
        first: dict[str, tables.Row] = {}
        rivals = {filename: row for filename, row in rows.items() if first.setdefault(self._sidecar(filename).path, row).caption != row.caption}
        for filename in rivals:
            del rows[filename]
        return [tables.LineProblem(row.line, f"{row.filename} shares its caption file with another picture, whose line counts.") for row in rivals.values()]

    def _known(self, filenames: Sequence[str], everything: Mapping[str, str]) -> list[str]:
        for filename in filenames:
            if filename not in everything:
                raise Refused(f"There is no picture {str(filename)[:200]!r} in this data set.", field="filenames", code="not_found")
        return list(dict.fromkeys(filenames))

    def _check_versions(self, sidecars: Mapping[str, Sidecar], versions: Mapping[str, str]) -> None:
        changed = [filename for filename, found in sidecars.items() if filename in versions and versions[filename] != found.version]
        if changed:
            raise self._conflict(ChangedMeanwhile(changed))

    def _run(self, label: str, changes: list[Change], *, automatic: bool = False) -> dict[str, Any]:
        before, wanted = self._entries(), list({change.path: change for change in changes}.values())   # two pictures may share a caption file
        try:
            made = [change.path for change in self._history.run(label, wanted, automatic=automatic)]
        except ChangedMeanwhile as error:
            raise self._conflict(error) from error
        except (OSError, sqlite3.Error) as error:
            raise _not_written(error, " Undo takes back what was.") from error
        if wanted and not made:
            raise self._conflict(ChangedMeanwhile([change.path for change in wanted]))
        return self._edited(label, made, before, skipped=[change.path for change in wanted if change.path not in made])

    def _turn(self, turn: Callable[..., Outcome], if_changed: str) -> dict[str, Any]:
        with self._lock:
            before = self._entries()
            try:
                outcome = turn(if_changed=if_changed)
            except ChangedMeanwhile as error:
                raise self._conflict(error) from error
            except (OSError, sqlite3.Error) as error:
                raise _not_written(error) from error
            return self._edited(outcome.label, outcome.paths, before, skipped=outcome.skipped)

    def _edited(self, label: str, paths: Sequence[str], before: Mapping[str, str], *, skipped: Sequence[str] = ()) -> dict[str, Any]:
        """Say what an edit has changed, by picture; a page that did not hold the revision of before has missed something else.

        The revision that is told is that of before with this edit's own files: what somebody else changed meanwhile shows as a difference.
        """
        now = self._entries()
        others = {path: told for path, told in before.items() if path not in paths}
        files_changed = any(Path(path).suffix.lower() in PICTURE_ENDINGS for path in paths)
        pictures_of = self._pictures_by_sidecar() if paths or skipped else {}
        captions = self._current([filename for path in paths for filename in pictures_of.get(path, ())])
        return {"label": label, "captions": captions, "files_changed": files_changed, "skipped": _named(skipped, pictures_of), "history": self._history.labels(),
                "revision_before": _name_of(before), "revision": _name_of({**others, **{path: now[path] for path in paths if path in now}})}

    def _conflict(self, error: ChangedMeanwhile) -> Refused:
        """Add to an error what is there now."""
        pictures_of = self._pictures_by_sidecar()
        filenames, there = _named(error.paths, pictures_of), {name for names in pictures_of.values() for name in names}
        current = self._current([filename for filename in filenames if filename in there])
        rows = [{"filename": filename, **{key: current.get(filename, {}).get(key) for key in ("caption", "version")}} for filename in filenames]
        return Refused(error.message, code=error.code, details={"conflicts": rows})

    def _pictures_by_sidecar(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for path in self._picture_files():
            found.setdefault(self._relative(sidecar(path)), []).append(self._relative(path))
        return found

    def _current(self, filenames: Iterator[str] | Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return caption, version and origin of pictures as they are on disk."""
        automatic, captions, rows = self._history.automatic(), None, {}
        for filename in filenames:
            found = self._sidecar(filename)
            if found.content is None and captions is None:                         # a table or the folder's class words may have one
                captions = self.captions()
            caption = (captions or {}).get(filename, "") if found.content is None else one_line(found.content)
            rows[filename] = {"caption": caption, "version": found.version, "automatic": (found.path, found.version) in automatic}
        return rows

    def _relative(self, path: Path) -> str:
        return os.fsencode(path.relative_to(self.folder).as_posix()).decode("utf-8", "replace")


def _name_of(entries: Mapping[str, str]) -> str:
    return hashlib.blake2b(repr(sorted(entries.items())).encode("utf-8"), digest_size=8).hexdigest()


def _named(paths: Iterable[str], pictures_of: Mapping[str, list[str]]) -> list[str]:
    """Return the pictures that paths of pictures and caption files belong to."""
    return list(dict.fromkeys(filename for path in paths for filename in pictures_of.get(path, [path])))


def safe_filename(filename: str) -> str:
    """Return a file name without folders; raises `Refused` for one that some file system would not take."""
    name = re.split(r"[\\/]", str(filename))[-1].strip()
    stem = Path(name).stem
    if not stem or name.startswith(".") or stem.endswith((".", " ")) or re.search(r'[<>:"|?*\x00-\x1f]', name) or not is_plain_text(name) \
            or len(name.encode("utf-8", "replace")) > 200 or re.fullmatch(WINDOWS_OWN, name):
        raise Refused(f"{str(filename)[:80]!r} cannot be used as a file name. Rename it.", field="to", code="bad_name")
    return name


def _check_caption(filename: str, caption: Any) -> None:
    if not can_be_caption(caption):
        raise Refused(f"The caption of {filename} is not text of at most {LARGEST_CAPTION_BYTES // 1000} kB.", field="changes", code="bad_value")


def _not_written(error: Exception, advice: str = "") -> Refused:
    return Refused(f"Not everything could be written: {getattr(error, 'strerror', None) or error}.{advice}", code="cannot_save")


def _check_shared(sidecars: Mapping[str, Sidecar], wanted: Mapping[str, bytes]) -> None:
    first: dict[str, bytes] = {}
    for filename, found in sidecars.items():
        if first.setdefault(found.path, wanted[filename]) != wanted[filename]:
            raise Refused(f"{filename} shares its caption file {found.path} with another picture, which was given another caption.", field="changes", code="bad_value")


def _drop_empty(rows: dict[str, tables.Row], captions: Mapping[str, str]) -> list[tables.LineProblem]:
    """Take out rows that would empty a caption: a cell without text says nothing."""
    empty = {filename: row for filename, row in rows.items() if not row.caption and captions[filename]}
    for filename in empty:
        del rows[filename]
    return [tables.LineProblem(row.line, f"the caption of {row.filename} is empty; the one that is there stays.") for row in empty.values()]


def _count(items: Sequence | Mapping) -> str:
    return f"{len(items)} picture{'s' * (len(items) != 1)}"


_LABELS = {"trigger_first": "Put {text} first", "prepend": "Put {text} in front", "append": "Add {text} at the end", "replace": "Replace {find}",
           "remove_tag": "Remove {tag}", "rename_tag": "Rename {tag} to {to}", "deduplicate": "Remove duplicate tags", "sort": "Sort tags", "order": "Order tags"}


def _label(action: str, settings: Mapping[str, Any], count: int) -> str:
    words = {name: str(value).strip()[:40] for name, value in settings.items()}
    return f"{_LABELS[action].format_map(words)} ({count} caption{'s' * (count != 1)})"
