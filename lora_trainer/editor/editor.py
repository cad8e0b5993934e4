"""One data set being edited: captions, single and many at once, and its files. Every edit is a step
of `History` and can be undone.

The truth is on disk, in the .txt beside each picture; whoever edits says which version of it they
saw, and nothing is written over another.
"""

import contextlib
import dataclasses
import os
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..base.errors import Refused
from ..base.paths import lies_in
from ..base.text import ENCODINGS, decode
from ..dataset import caption_tables
from ..dataset.captions import (
    LARGEST_CAPTION_BYTES,
    can_be_caption,
    in_table,
    lines_of,
    sidecar,
    split_tags,
    text_of,
    to_bytes,
    with_trigger,
)
from ..dataset.scan import Picture, inspect, is_picture_file, is_picture_name, read_kohya_name
from ..settings.config import is_plain_text
from . import checks, picture_files
from .background_scan import BackgroundScan, DuplicateFinder
from .bulk_edits import plan_edit
from .dataset_reader import CaptionFile, DatasetReader, bad_lines, picture_in, pictures_of
from .folder_listing import Listing
from .undo_history import Change, ChangedMeanwhile, History, Outcome, digest

WINDOWS_OWN = (  # names of devices, whatever ending they have
    r"(?i)(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[\d\u00b9\u00b2\u00b3]) *(\..*)?"
)
CountTokens = Callable[[Sequence[str]], "list[int] | None"]


class DataSetEditor:
    """The pictures in `folder`, as a person edits them; history, trash and thumbnails are kept in
    `home`. Safe from any thread.

    `count_tokens` counts CLIP's tokens of each caption, or returns None while it is not ready to.
    """

    def __init__(
        self, name: str, folder: Path, home: Path, *, count_tokens: CountTokens | None = None
    ) -> None:
        self.name, self.folder, self._count_tokens = name, folder, count_tokens
        self._lock = threading.RLock()
        self._history, self._examination, self._twins = (
            History(folder, home),
            BackgroundScan(home),
            DuplicateFinder(),
        )
        self._reader = DatasetReader(folder, self._examination)

    def alive(self) -> bool:
        """Tell whether what it keeps is still on disk; a user may have deleted the folder and made
        it anew.
        """
        return self._history.alive()

    def close(self) -> None:
        self._examination.close()
        self._history.close()

    # --- What is there ----------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Return `{name, path, revision, history, trash, pictures, problems}`; pictures by their
        headers, without decoding any.
        """
        listing = self._reader.look()
        found, problems = self._reader.scan(listing)
        automatic, versions = self._history.automatic(), self._reader.versions(listing)
        base = f"datasets/{quote(self.name)}/thumbnails"
        rows = [
            _row(
                name,
                picture,
                versions[name][1],
                listing,
                automatic=versions[name] in automatic,
                base=base,
            )
            for name, picture in found.items()
            if name in versions and name in listing.files
        ]
        return {
            "name": self.name,
            "path": str(self.folder),
            "revision": listing.revision,
            "history": self._history.labels(),
            "trash": str(self._history.trash) if self._history.trash.is_dir() else None,
            "pictures": rows,
            "problems": [
                *self._reader.bad_tables(listing),
                *(
                    {"filename": self._relative(problem.path), "reason": problem.reason}
                    for problem in problems
                ),
            ],
        }

    def revision(self) -> str:
        """Name the state of pictures, captions and tables on disk, from what the folders' entries
        tell.
        """
        return self._reader.look().revision

    def state(self) -> dict[str, Any]:
        return {"revision": self.revision(), "history": self._history.labels()}

    def captions(self) -> dict[str, str]:
        """Return every usable picture's caption, by file name."""
        return self._reader.captions(self._reader.look())

    def picture_path(self, filename: str) -> Path:
        """Return a picture's path if it really lies in the folder (or a kohya subfolder): no `..`,
        no link that leads out.
        """
        path = self.folder / filename
        inside = path.parent == self.folder or (
            path.parent.parent == self.folder and read_kohya_name(path.parent)
        )
        if (
            not inside
            or ".." in Path(filename).parts
            or not is_picture_file(path)
            or not self._is_there(path)
        ):
            raise Refused(
                f"There is no picture {filename[:200]!r} in this data set.",
                field="filename",
                code="not_found",
            )
        return path

    def _is_there(self, path: Path) -> bool:
        try:
            return path.is_file() and lies_in(path, self.folder)
        except (OSError, ValueError):  # a name that is too long, or has a NUL
            return False

    # --- Captions ---------------------------------------------------------------------------------

    def set_captions(
        self,
        changes: Mapping[str, str],
        *,
        versions: Mapping[str, str] | None = None,
        label: str = "",
    ) -> dict[str, Any]:
        """Save captions as one step, all names and versions checked before the first is written.

        Raises `Refused`: code "not_found", "bad_value", or "changed_meanwhile" with what is there
        now, when a version is not on disk any more.
        """
        with self._lock:
            listing = self._reader.look()
            sidecars = {filename: self._reader.sidecar(listing, filename) for filename in changes}
            for filename, caption in changes.items():
                check_caption(filename, caption)
            self._check_versions(sidecars, versions or {})
            wanted = {filename: to_bytes(caption) for filename, caption in changes.items()}
            _check_shared(sidecars, wanted)
            label = label or (
                f"Caption of {next(iter(changes))}"
                if len(changes) == 1
                else f"{len(changes)} captions"
            )
            return self._run(
                label,
                [
                    Change(found.path, found.content, wanted[filename])
                    for filename, found in sidecars.items()
                    if found.content != wanted[filename]
                ],
                listing,
            )

    def bulk_edit(
        self,
        action: str,
        settings: Mapping[str, Any],
        *,
        filenames: Sequence[str] | None = None,
        preview: bool = False,
        versions: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Edit all or some captions by an action of edits.py, as one step; `preview` returns what
        would change and writes nothing.
        """
        with self._lock:
            seen, everything = self._seen()
            captions = (
                everything
                if filenames is None
                else {name: everything[name] for name in self._known(filenames, everything)}
            )
            changes = plan_edit(action, captions, settings, everything=everything)
            if preview:
                rows = [
                    {
                        "filename": name,
                        "before": captions[name],
                        "after": after,
                        "version": seen.get(name, ""),
                    }
                    for name, after in changes.items()
                ]
                return {"changes": rows, "count": len(rows), "unchanged": len(captions) - len(rows)}
            return {
                **self.set_captions(
                    changes,
                    versions={**seen, **(versions or {})},
                    label=_label(action, settings, len(changes)),
                ),
                "count": len(changes),
            }

    def import_table(
        self,
        name: str,
        data: bytes,
        *,
        encoding: str | None = None,
        apply: bool = False,
        versions: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Read captions from a table and say what it would change, line by line; `apply` writes it,
        as one step. Bad lines are left out.
        """
        with self._lock:
            seen, captions = self._seen()
            table = caption_tables.parse_table(
                name,
                data,
                encoding=encoding or caption_tables.fitting_encoding(name, data, captions),
            )
            rows, unmatched = caption_tables.match_rows(table, captions)
            unmatched += self._drop_rivals(rows) + _drop_empty(rows, captions)
            changed = {
                filename: row for filename, row in rows.items() if row.caption != captions[filename]
            }
            report = {
                "encoding": table.encoding,
                "encodings": list(ENCODINGS),
                "rows": len(table.rows) + len(table.problems),
                "unchanged": len(rows) - len(changed),
                "changes": [
                    {
                        "line": row.line,
                        "filename": filename,
                        "before": captions[filename],
                        "after": row.caption,
                        "version": seen.get(filename, ""),
                    }
                    for filename, row in changed.items()
                ],
                "problems": [
                    dataclasses.asdict(problem)
                    for problem in sorted(
                        (*table.problems, *unmatched), key=lambda problem: problem.line
                    )
                ],
            }
            if not apply:
                return report
            done = self.set_captions(
                {filename: row.caption for filename, row in changed.items()},
                versions={**seen, **(versions or {})},
                label=f"Captions from {name}",
            )
            return {**report, **done}

    def read_table(self, filename: str) -> dict[str, Any]:
        """Return a table that lies in the data set, to be mended: `{filename, text, version,
        reason, lines}`.
        """
        path = self._table_path(self._reader.look(), filename)
        data = caption_tables.content_of_table(path)
        laid = caption_tables.look_at_table(path)
        return {
            "filename": filename,
            "text": decode(data),
            "version": digest(data),
            "reason": laid.reason,
            "lines": bad_lines(laid),
        }

    def replace_table(
        self, filename: str, data: bytes, *, version: str | None = None
    ) -> dict[str, Any]:
        """Put another table in the place of one, as one step; the old one goes into the trash
        folder. One with bad lines is refused.
        """
        with self._lock:
            listing = self._reader.look()
            path = self._table_path(listing, filename)
            if version is not None and version != digest(caption_tables.content_of_table(path)):
                raise Refused(
                    f"{filename} was changed meanwhile by another page or program.",
                    field="version",
                    code="changed_meanwhile",
                )
            table = caption_tables.parse_table(path.name, data)
            if table.problems:
                first = table.problems[0]
                raise Refused(
                    f"Line {first.line}: {first.message}",
                    field="file",
                    code="unreadable_table",
                    details={
                        "lines": bad_lines(caption_tables.LaidTable({}, "", tuple(table.problems)))
                    },
                )
            return self._run(
                f"Replace {path.name}",
                [
                    Change(
                        filename,
                        self._history.trash_name_of(filename),
                        self._history.stage(filename, data),
                    )
                ],
                listing,
            )

    def discard_table(self, filename: str) -> dict[str, Any]:
        """Move a table into the trash folder."""
        with self._lock:
            listing = self._reader.look()
            path = self._table_path(listing, filename)
            return self._run(
                f"Delete {path.name}",
                [Change(filename, self._history.trash_name_of(filename), None)],
                listing,
            )

    def _table_path(self, listing: Listing, filename: str) -> Path:
        if (
            filename not in listing.files
            or not _is_table(filename)
            or not lies_in(self.folder / filename, self.folder)
        ):
            raise Refused(
                f"There is no caption table {filename[:200]!r} in this data set.",
                field="filename",
                code="not_found",
            )
        return self.folder / filename

    def export_table(self, format: str) -> bytes:
        """Return every caption as a metadata.csv or metadata.jsonl."""
        if format not in ("csv", "jsonl"):
            raise Refused(
                f"The format {format[:20]!r} is not known; expected csv or jsonl.",
                field="format",
                code="bad_value",
            )
        return (caption_tables.format_csv if format == "csv" else caption_tables.format_jsonl)(
            self.captions()
        )

    @contextlib.contextmanager
    def captioning(self, label: str) -> Iterator[Callable[..., list[str]]]:
        """Write captions of a captioner, together one step; yields `write({filename: caption},
        keep_manual=True)`.

        It returns the pictures that were written; one that went away meanwhile is not. With
        `keep_manual` a caption that a person wrote, or changed, by then is left alone.
        """
        with self._history.step(label) as apply:

            def write(captions: Mapping[str, str], *, keep_manual: bool = True) -> list[str]:
                with self._lock:
                    changes = self._automatic_changes(captions, keep_manual=keep_manual)
                    made = {
                        change.path
                        for change in apply(
                            list({change.path: change for change in changes.values()}.values()),
                            automatic=True,
                        )
                    }
                    return [filename for filename, change in changes.items() if change.path in made]

            yield write

    def undo(self, *, if_changed: str = "refuse") -> dict[str, Any]:
        return self._turn(self._history.undo, if_changed)

    def redo(self, *, if_changed: str = "refuse") -> dict[str, Any]:
        return self._turn(self._history.redo, if_changed)

    def _automatic_changes(
        self, captions: Mapping[str, str], *, keep_manual: bool
    ) -> dict[str, Change]:
        changes: dict[str, Change] = {}
        for filename, caption in captions.items():
            with contextlib.suppress(
                Refused
            ):  # the picture was deleted or renamed while it was looked at
                found = self._reader.read_sidecar(filename, sidecar(self.picture_path(filename)))
                manual = (
                    found.content is not None
                    and not self._history.is_automatic(found.path, found.version)
                    and bool(text_of(found.content))
                )
                if not (keep_manual and manual):
                    changes[filename] = Change(found.path, found.content, to_bytes(caption))
        return changes

    # --- Files ------------------------------------------------------------------------------------

    def rename(self, filename: str, to: str) -> dict[str, Any]:
        """Rename a picture and its caption file; the ending stays. Raises `Refused`, code "exists"
        when the name is taken.
        """
        with self._lock:
            listing = self._reader.look()
            path, found = picture_in(listing, filename), self._reader.sidecar(listing, filename)
            if re.search(r"[\\/]", to):
                raise Refused(
                    f"{to[:80]!r} names a folder; pictures stay in theirs. Give a name without"
                    " slashes.",
                    field="to",
                    code="bad_name",
                )
            stem = to[: -len(path.suffix)] if to.lower().endswith(path.suffix.lower()) else to
            new = path.with_name(safe_filename(f"{stem.strip()}{path.suffix}"))
            if new == path:
                return {**self._edited("", [], listing), "filename": filename}
            self._refuse_taken(new, listing)
            key, target = self._history.trash_name_of(filename), self._relative(new)
            changes = [Change(filename, key, None, filename), Change(target, None, key, filename)]
            for file in self._reader.caption_files(listing, filename):
                target_file = self._relative(new.with_suffix(Path(file.path).suffix))
                changes += [
                    *_without_caption(file, {filename}, listing, bundle=filename),
                    Change(target_file, None, file.content, filename),
                ]
            if found.content is None and (
                content := to_bytes(
                    in_table(path, self._reader.table(listing, filename).captions) or ""
                )
            ):
                changes.append(Change(self._relative(sidecar(new)), None, content, filename))
            automatic = self._history.is_automatic(found.path, found.version)
            return {
                **self._run(
                    f"Rename {path.name} to {new.name}", changes, listing, automatic=automatic
                ),
                "filename": target,
            }

    def _refuse_taken(self, new: Path, listing: Listing) -> None:
        """A name is taken by a file, or by a picture of the same stem, whose caption it would
        become.
        """
        rivals = listing.of_stem(self._relative(sidecar(new)))
        taken = (
            new.name
            if new.exists()
            else sidecar(new).name
            if sidecar(new).exists()
            else rivals[0]
            if rivals
            else None
        )
        if taken:
            raise Refused(f"There is already {taken} in this data set.", field="to", code="exists")

    def rotate(self, filenames: Sequence[str], degrees: int) -> dict[str, Any]:
        """Turn pictures clockwise by 90, 180 or 270 degrees; undo brings back the very files of
        before.
        """
        with self._lock:
            listing = self._reader.look()
            turned = {
                filename: picture_files.rotated(picture_in(listing, filename), degrees)
                for filename in dict.fromkeys(filenames)
            }
            changes = [
                Change(
                    filename,
                    self._history.trash_name_of(filename),
                    self._history.stage(filename, data),
                )
                for filename, data in turned.items()
            ]
            return self._run(f"Rotate {_count(turned)}", changes, listing)

    def discard(self, filenames: Sequence[str]) -> dict[str, Any]:
        """Move pictures, with their captions, into the trash folder."""
        with self._lock:
            listing, going = self._reader.look(), dict.fromkeys(filenames)
            for filename in going:
                picture_in(listing, filename)
            changes, aside = [], self._history.trash_names_of(list(going))
            for filename in going:
                changes.append(Change(filename, aside[filename], None, filename))
                for file in self._reader.caption_files(listing, filename):
                    changes += _without_caption(file, going.keys(), listing, bundle=filename)
            return self._run(f"Delete {_count(going)}", changes, listing)

    # --- Pictures and checks ----------------------------------------------------------------------

    def empty_trash(self) -> int:
        """Delete what lies in the trash folder, so that those steps cannot be undone any more;
        returns the bytes. Raises OSError.
        """
        with self._lock:
            files = (
                [
                    path
                    for path in self._history.trash.glob("*")
                    if path.is_file() and not path.is_symlink()
                ]
                if self._history.trash.is_dir()
                else []
            )
            freed = sum(path.stat().st_size for path in files)
            for path in files:
                path.unlink()
        return freed

    def thumbnail(self, filename: str) -> Path:
        """Return a small JPEG of a picture, made once; raises `Refused` for anything that is not a
        picture of this data set.
        """
        return self._examination.thumbnail(self.picture_path(filename))

    def preview(self, filename: str) -> bytes:
        return picture_files.preview(self.picture_path(filename))

    def training_crop(self, filename: str, wanted: checks.CheckSettings) -> bytes:
        """Return a JPEG of what the trainer gets from a picture."""
        facts = inspect(path := self.picture_path(filename), thorough=False)
        return picture_files.training_crop(
            path, checks.bucket_for(facts.width, facts.height, wanted)
        )

    def check(self, wanted: checks.CheckSettings) -> dict[str, Any]:
        """Return `{ready, examined, total, summary, pictures}`: remarks and crops; starts the
        examination of what was not looked at yet.
        """
        listing = self._reader.look()
        found, problems = self._reader.scan(listing)
        findings = self._reader.findings(listing, found)
        self._examination.start(
            [picture.path for name, picture in found.items() if name not in findings]
        )
        duplicates, shared = self._twins.among(findings), listing.sharing()
        shown = [
            max(lines_of(picture.caption, wanted.caption_lines), key=len)
            for picture in found.values()
        ]
        tokens = (
            self._count_tokens([with_trigger(caption, wanted.trigger_word) for caption in shown])
            if self._count_tokens and found
            else None
        )
        rows, remarks = {}, []
        for number, (name, picture) in enumerate(found.items()):
            size = {"width": picture.width, "height": picture.height}
            crop = checks.crop_for(**size, wanted=wanted)
            own = {
                "tokens": tokens[number] if tokens else None,
                "duplicates": duplicates.get(name, []),
            }
            remarks.append(
                checks.remarks_on(
                    **size,
                    **own,
                    caption=picture.caption,
                    other=picture.other_caption,
                    shared=shared.get(name, []),
                    crop=crop,
                    wanted=wanted,
                )
            )
            rows[name] = {
                **own,
                "remarks": [
                    {"code": remark.code, "message": remark.message} for remark in remarks[-1]
                ],
                "crop": crop,
            }
        counted = tokens is not None or not self._count_tokens or not found
        return {
            "ready": len(findings) == len(found) and counted,
            "examined": len(findings),
            "total": len(found),
            "summary": checks.summary(remarks, len(problems)),
            "pictures": rows,
        }

    # --- Inside -----------------------------------------------------------------------------------

    def _seen(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return every picture's version and caption, the versions read first: what changes in
        between is then seen as changed.
        """
        listing = self._reader.look()
        versions = {
            filename: version for filename, (_, version) in self._reader.versions(listing).items()
        }
        return versions, self._reader.captions(listing)

    def _drop_rivals(self, rows: dict[str, caption_tables.Row]) -> list[caption_tables.LineProblem]:
        """Take out rows that give another caption to a caption file that an earlier row gave
        one.
        """
        first: dict[str, caption_tables.Row] = {}
        paths = {
            filename: path
            for filename, (path, _) in self._reader.versions(self._reader.look()).items()
        }
        rivals = {
            filename: row
            for filename, row in rows.items()
            if first.setdefault(paths.get(filename, filename), row).caption != row.caption
        }
        for filename in rivals:
            del rows[filename]
        return [
            caption_tables.LineProblem(
                row.line,
                f"{row.filename} shares its caption file with another picture, whose line counts.",
            )
            for row in rivals.values()
        ]

    def _known(self, filenames: Sequence[str], everything: Mapping[str, str]) -> list[str]:
        for filename in filenames:
            if filename not in everything:
                raise Refused(
                    f"There is no picture {str(filename)[:200]!r} in this data set.",
                    field="filenames",
                    code="not_found",
                )
        return list(dict.fromkeys(filenames))

    def _check_versions(
        self, sidecars: Mapping[str, CaptionFile], versions: Mapping[str, str]
    ) -> None:
        changed = [
            filename
            for filename, found in sidecars.items()
            if filename in versions and versions[filename] != found.version
        ]
        if changed:
            raise self._conflict(ChangedMeanwhile(changed))

    def _run(
        self, label: str, changes: list[Change], listing: Listing, *, automatic: bool = False
    ) -> dict[str, Any]:
        """Do a step; `listing` is what was there before."""
        wanted = list(
            {change.path: change for change in changes}.values()
        )  # two pictures may share a caption file
        try:
            made = {change.path for change in self._history.run(label, wanted, automatic=automatic)}
        except ChangedMeanwhile as error:
            raise self._conflict(error) from error
        except (OSError, sqlite3.Error) as error:
            raise _not_written(error, " Undo takes back what was.") from error
        if wanted and not made:
            raise self._conflict(ChangedMeanwhile([change.path for change in wanted]))
        done, skipped = (
            [change.path for change in wanted if change.path in made],
            [change.path for change in wanted if change.path not in made],
        )
        return self._edited(label, done, listing, skipped=skipped)

    def _turn(self, turn: Callable[..., Outcome], if_changed: str) -> dict[str, Any]:
        with self._lock:
            before = self._reader.look()
            try:
                outcome = turn(if_changed=if_changed)
            except ChangedMeanwhile as error:
                raise self._conflict(error) from error
            except (OSError, sqlite3.Error) as error:
                raise _not_written(error) from error
            return self._edited(outcome.label, outcome.paths, before, skipped=outcome.skipped)

    def _edited(
        self, label: str, paths: Sequence[str], before: Listing, *, skipped: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Say what an edit has changed, by picture; a page that did not hold the revision of before
        has missed something else.

        The revision that is told is that of before with this edit's own files: what somebody else
        changed meanwhile shows as a difference.
        """
        now = before.after(paths)
        return {
            "label": label,
            "captions": self._current(
                now, [filename for path in paths for filename in now.of_stem(path)]
            ),
            "files_changed": any(is_picture_name(path) or _is_table(path) for path in paths),
            "skipped": pictures_of(skipped, now),
            "history": self._history.labels(),
            "revision_before": before.revision,
            "revision": now.revision,
        }

    def _conflict(self, error: ChangedMeanwhile) -> Refused:
        """Add to an error what is there now."""
        listing = self._reader.look()
        filenames = pictures_of(error.paths, listing)
        current = self._current(
            listing, [filename for filename in filenames if filename in listing.pictures]
        )
        rows = [
            {
                "filename": filename,
                **{key: current.get(filename, {}).get(key) for key in ("caption", "version")},
            }
            for filename in filenames
        ]
        return Refused(error.message, code=error.code, details={"conflicts": rows})

    def _current(self, listing: Listing, filenames: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return caption, version and origin of pictures as they are on disk."""
        rows = {}
        for filename in filenames:
            found = self._reader.sidecar(listing, filename)
            rows[filename] = {
                "caption": self._reader.caption_of(listing, filename, found),
                "version": found.version,
                "automatic": self._history.is_automatic(found.path, found.version),
            }
        return rows

    def _relative(self, path: Path) -> str:
        return os.fsencode(path.relative_to(self.folder).as_posix()).decode("utf-8", "replace")


def _row(
    filename: str, picture: Picture, version: str, listing: Listing, *, automatic: bool, base: str
) -> dict[str, Any]:
    stamp = listing.files[filename].st_mtime_ns // 1_000_000
    return {
        "filename": filename,
        "width": picture.width,
        "height": picture.height,
        "caption": picture.caption,
        "tags": split_tags(picture.caption),
        "version": version,
        "automatic": automatic,
        "repeats": picture.repeats,
        "warnings": list(picture.warnings),
        "thumbnail": f"{base}/{quote(filename)}?{stamp}",
    }


def _without_caption(
    found: CaptionFile, going: Set[str], listing: Listing, *, bundle: str
) -> list[Change]:
    """The change that takes a caption file away, unless a picture that stays needs it, too."""
    needed = any(filename not in going for filename in listing.of_stem(found.path))
    return (
        [] if found.content is None or needed else [Change(found.path, found.content, None, bundle)]
    )


def _is_table(path: str) -> bool:
    return path.rpartition("/")[2] in caption_tables.TABLE_NAMES


def safe_filename(filename: str) -> str:
    """Return a file name without folders; raises `Refused` for one that some file system would not
    take.
    """
    name = re.split(r"[\\/]", str(filename))[-1].strip()
    stem = Path(name).stem
    if (
        not stem
        or name.startswith(".")
        or stem.endswith((".", " "))
        or re.search(r'[<>:"|?*\x00-\x1f]', name)
        or not is_plain_text(name)
        or len(name.encode("utf-8", "replace")) > 200
        or re.fullmatch(WINDOWS_OWN, name)
    ):
        raise Refused(
            f"{str(filename)[:80]!r} cannot be used as a file name. Rename it.",
            field="to",
            code="bad_name",
        )
    return name


def check_caption(filename: str, caption: Any) -> None:
    """Raise `Refused` for what cannot be stored as a caption."""
    if not can_be_caption(caption):
        raise Refused(
            f"The caption of {filename} is not text of at most {LARGEST_CAPTION_BYTES // 1000} kB.",
            field="changes",
            code="bad_value",
        )


def _not_written(error: Exception, advice: str = "") -> Refused:
    return Refused(
        f"Not everything could be written: {getattr(error, 'strerror', None) or error}.{advice}",
        code="cannot_save",
    )


def _check_shared(sidecars: Mapping[str, CaptionFile], wanted: Mapping[str, bytes]) -> None:
    first: dict[str, bytes] = {}
    for filename, found in sidecars.items():
        if first.setdefault(found.path, wanted[filename]) != wanted[filename]:
            raise Refused(
                f"{filename} shares its caption file {found.path} with another picture, which was"
                " given another caption.",
                field="changes",
                code="bad_value",
            )


def _drop_empty(
    rows: dict[str, caption_tables.Row], captions: Mapping[str, str]
) -> list[caption_tables.LineProblem]:
    """Take out rows that would empty a caption: a cell without text says nothing."""
    empty = {
        filename: row for filename, row in rows.items() if not row.caption and captions[filename]
    }
    for filename in empty:
        del rows[filename]
    return [
        caption_tables.LineProblem(
            row.line, f"the caption of {row.filename} is empty; the one that is there stays."
        )
        for row in empty.values()
    ]


def _count(items: Sequence | Mapping) -> str:
    return f"{len(items)} picture{'s' * (len(items) != 1)}"


_LABELS = {
    "trigger_first": "Put {text} first",
    "prepend": "Put {text} in front",
    "append": "Add {text} at the end",
    "replace": "Replace {find}",
    "remove_tag": "Remove {tag}",
    "rename_tag": "Rename {tag} to {to}",
    "deduplicate": "Remove duplicate tags",
    "sort": "Sort tags",
    "order": "Order tags",
}


def _label(action: str, settings: Mapping[str, Any], count: int) -> str:
    words = {name: str(value).strip()[:40] for name, value in settings.items()}
    return f"{_LABELS[action].format_map(words)} ({count} caption{'s' * (count != 1)})"
