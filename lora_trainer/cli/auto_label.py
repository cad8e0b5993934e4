"""`auto-label`: captions for a folder of pictures from the command line, as .txt files or as one
table.
"""

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from ..base.contracts import Host
from ..base.errors import Refused
from ..base.files import read_small_file, write_atomically
from ..captioning.caption_affixes import OPTIONS
from ..captioning.downloads import download_size_text
from ..captioning.labels import LabelSets
from ..captioning.options import OptionView
from ..captioning.registry import Captioners
from ..captioning.run import CaptionFailure, CaptionProgress, PictureToCaption, caption_pictures
from ..captioning.table_file import TableFile
from ..dataset.caption_tables import find_table
from ..dataset.captions import LARGEST_CAPTION_FILE_BYTES, in_table, read_caption, sidecar, to_bytes
from ..dataset.scan import scan
from ..settings.setting import WrittenSettings
from .ctrl_c import asked_by_ctrl_c
from .progress import Progress, ProgressDisplay, show_progress

HOME = Path("~/.cache/train_lora")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments; those of caption affixes are options of all captioners."""
    parser.add_argument(
        "--input",
        type=Path,
        metavar="DIR",
        help="folder with the pictures, and folders such as 10_name in it",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="table to write, .csv or .jsonl; without it each picture gets a .txt beside it",
    )
    parser.add_argument(
        "--captioner", default="clip-labels", help="see --list (default: clip-labels)"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="also replace captions that are there; without it they are kept",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the captioner, see --list; may be repeated",
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="list captioners with their options, what they need and whether they are ready",
    )
    parser.add_argument("--device", help="cuda, cpu, … (default: the GPU if there is one)")
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=HOME,
        metavar="DIR",
        help=f"where models, label lists and caches are kept (default: {HOME})",
    )
    for option in OPTIONS:
        names = [f"--{option.name.replace('_', '-')}"]
        if option.type is bool:
            parser.add_argument(
                *names, action=argparse.BooleanOptionalAction, default=None, help=option.help
            )
        else:
            parser.add_argument(
                *names, dest=option.name, metavar="TEXT", help=option.help.replace("%", "%%")
            )


def run(args: argparse.Namespace, make_host: Callable[..., Host]) -> int:
    """Run the command; return 0, 1 when pictures failed or the table could not be written, 130
    after Ctrl-C, which keeps what is done. Raises `Refused`.
    """
    home = args.data_dir.expanduser()
    host = make_host(checkpoint=Path(), lora_dir=home, data_dir=home, device=args.device)
    captioners = Captioners(home, LabelSets(home / "labels"), lambda path: None, host.captioners())
    if args.list:
        return _list(captioners)
    if args.input is None:
        raise Refused("Which pictures? Give --input, a folder.", field="input")
    captioner, options = captioners.read(args.captioner, _options(args))
    readiness = captioner.readiness(options)
    if not readiness.can_start:
        raise Refused(readiness.needs)
    if not readiness.ready:
        print(f"download: {readiness.downloads}")
    captions = Captions(args.input, args.output, overwrite=args.overwrite)
    progress = captions.progress
    with (
        show_progress(progress.total, unit="picture", done=progress.done) as display,
        asked_by_ctrl_c(lambda: "Stopping after this batch; what is done is kept.") as asked,
        contextlib.closing(captions),
    ):
        if captions.to_write:
            progress = caption_pictures(
                captions.to_write,
                captioner,
                options,
                host,
                captions.write,
                on_progress=functools.partial(_show, display),
                should_stop=asked,
                begin=progress,
            )
    return _report(progress, captions, stopped=asked())


class Captions:
    """The captions of a folder: `to_write` are the pictures that get one, and `write` puts it where
    it goes. A table is written every so often, and by `close`.

    What a person writes meanwhile stays: `kept` are the pictures whose new caption was dropped for
    theirs after it had been counted.
    """

    def __init__(self, folder: Path, table: Path | None, *, overwrite: bool) -> None:
        """Raises `Refused` for a folder without pictures, and for a table that cannot be read or
        written, before anything is done.
        """
        self._paths, failed = _pictures(folder)
        self._before = {
            name: read_small_file(sidecar(path), most_bytes=LARGEST_CAPTION_FILE_BYTES)
            for name, path in self._paths.items()
        }
        self._table = TableFile(table, self._paths) if table else None
        self._given: set[str] = set()
        known = self._known_captions()
        in_output = self._table.captions if self._table else {}
        self._copied = {  # captions of .txt files, for the table
            name: caption for name, caption in known.items() if caption and not in_output.get(name)
        }
        names = [name for name in self._paths if overwrite or not known[name]]
        self.to_write = [PictureToCaption(name, self._paths[name]) for name in names]
        skipped = len(self._paths) - len(self.to_write)
        self.progress = CaptionProgress(
            total=len(self._paths) + len(failed),
            done=skipped + len(failed),
            skipped=skipped,
            failed=failed,
        )

    def _known_captions(self) -> dict[str, str | None]:
        """Return captions by name: of the output table, the .txt files or a table beside them."""
        if self._table:
            rows = self._table.captions
            return {
                name: rows.get(name) or read_caption(path) for name, path in self._paths.items()
            }
        beside = functools.cache(find_table)  # each is read once, however many pictures it is for
        return {
            name: read_caption(path) or in_table(path, beside(path.parent))
            for name, path in self._paths.items()
        }

    def write(self, captions: Mapping[str, str]) -> list[str]:
        if not self._table:
            return [name for name, caption in captions.items() if self._write_text(name, caption)]
        self._table.put({**self._copied, **captions})
        self._copied = {}
        self._given.update(captions)
        if self._table.unsaved >= 100:
            self._table.save()
        return list(captions)

    def close(self) -> None:
        if self._table:
            self._table.save()

    @property
    def place(self) -> str:
        return str(self._table.written_to) if self._table else ".txt files beside the pictures"

    @property
    def trouble(self) -> str:
        """Why the captions are not in the table that was asked for, in a sentence, or nothing."""
        return self._table.failure if self._table else ""

    @property
    def kept(self) -> set[str]:
        if self._table is None or self._table.failure:
            return set()
        return self._table.edited_by_user & self._given

    def _write_text(self, name: str, caption: str) -> bool:
        """Write a picture's .txt, unless a person has written it since the beginning."""
        path, data = sidecar(self._paths[name]), to_bytes(caption)
        if read_small_file(path, most_bytes=LARGEST_CAPTION_FILE_BYTES) != self._before[name]:
            return False
        write_atomically(path, data)
        self._before[name] = data
        return True


def _pictures(folder: Path) -> tuple[dict[str, Path], list[CaptionFailure]]:
    pictures, problems = scan(folder.expanduser(), thorough=False)
    named = {
        picture.path.relative_to(folder.expanduser()).as_posix(): picture.path
        for picture in pictures
    }
    if not named and not problems:
        raise Refused(f"There are no pictures in {folder}.", field="input")
    return named, [
        {"filename": problem.path.name, "reason": problem.reason} for problem in problems
    ]


def _options(args: argparse.Namespace) -> WrittenSettings:
    values = {
        option.name: value
        for option in OPTIONS
        if (value := getattr(args, option.name)) is not None
    }
    for given in args.option:
        name, equals, value = given.partition("=")
        if not equals:
            raise Refused(f"--option {given!r} is not of the form name=value.", field="option")
        values[name.strip().replace("-", "_")] = value
    return values


# --- Output ---------------------------------------------------------------------------------------


def _list(captioners: Captioners) -> int:
    for each in captioners.all():
        size = f" [{download_size_text(each['download_bytes'])}]" if each["downloads"] else ""
        readiness = "ready" if each["ready"] else each["needs"]
        print(f"{each['name']}: {each['title']}. {each['help']}\n  {readiness}{size}")
        for option in each["options"]:
            print(f"    {option['name']}={option['default']}  {option['help']}{_choices(option)}")
    return 0


def _choices(option: OptionView) -> str:
    if "choices" not in option:
        return ""
    return f" ({', '.join(repr(choice['value']) for choice in option['choices'])})"


def _show(display: ProgressDisplay, progress: CaptionProgress) -> None:
    if progress.stage != "preparing":
        status = "captioning"
    elif progress.fraction:
        status = f"{progress.message} {progress.fraction:.0%}"
    else:
        status = progress.message
    display.update(Progress(progress.done, status))


def _report(progress: CaptionProgress, captions: Captions, *, stopped: bool) -> int:
    for failure in progress.failed:
        print(f"failed: {failure['filename']}: {failure['reason']}", file=sys.stderr)
    if captions.trouble:
        print(f"{captions.trouble} The new captions are in {captions.place}.", file=sys.stderr)
    written = progress.written - len(captions.kept)
    skipped = progress.skipped + len(captions.kept)
    kept = f", {skipped} left as they were" if skipped else ""
    failed = f", {len(progress.failed)} failed" if progress.failed else ""
    print(f"{written} captions written to {captions.place}{kept}{failed}")
    if stopped and progress.done < progress.total:
        return 130
    return 1 if progress.failed or captions.trouble else 0
