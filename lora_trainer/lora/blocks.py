"""Blocks of the UNet by the WebUI's names (IN00 to IN11, MID, OUT00 to OUT11; with SDXL to IN08 and
OUT08), and lists of them with ranks.

A list is `IN04-IN08=16, MID=64:32, OUT03`: blocks or ranges, each with its own rank and alpha if
need be. BASE is the text encoder.
"""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator

from ..base.errors import ErrorCode, Refused
from .weight_names import BLOCKS_PER_LEVEL, LEVELS, SDXL_LEVELS

BASE, MIDDLE = "BASE", "MID"
_STRIDE = BLOCKS_PER_LEVEL + 1
MOST_RANK, MOST_ALPHA, MOST_RATE_FACTOR = 1024, 4096.0, 100.0
RATES_FIELD = "block_learning_rates"

# Named lists. down, mid and up are the parts of the UNet; the others are where a thing is learned.
# SD1 and SD2: P+ (arXiv 2303.09522) shows that the layers of 8x8 and 16x16 tokens carry shape and
# layout, those of 32x32 and 64x64 texture and colour. character is what lies between the outermost
# layers, about the preset MIDD of sd-webui-lora-block-weight, whose OUTS is about our style. SDXL:
# B-LoRA (arXiv 2403.14572) finds content in OUT00 and style in OUT01; InstantStyle (arXiv
# 2404.02733) layout in IN08 and style in OUT01.
PRESETS = {
    LEVELS: {
        "all": "IN00-OUT11",
        "down": "IN00-IN11",
        "mid": "MID",
        "up": "OUT00-OUT11",
        "character": "IN04-OUT05",
        "style": "OUT06-OUT11",
        "composition": "IN07-OUT05",
    },
    SDXL_LEVELS: {
        "all": "IN00-OUT08",
        "down": "IN00-IN08",
        "mid": "MID",
        "up": "OUT00-OUT08",
        "character": "IN07-OUT01",
        "style": "OUT01",
        "composition": "IN07-MID",
    },
}


@dataclasses.dataclass(frozen=True)
class BlockRank:
    """Rank and alpha of a block, None where the list does not give them; a block of rank 0 is not
    trained.
    """

    rank: int | None = None
    alpha: float | None = None

    def with_defaults(self, rank: int, alpha: float) -> tuple[int, float]:
        """Return rank and alpha of a layer that would have these without the list.

        A rank alone keeps alpha / rank as it is.
        """
        own = rank if self.rank is None else self.rank
        return own, self.alpha or alpha * own / rank


def block_of(path: str) -> str | None:
    """Return the block of a layer by its path in the UNet, LDM's, sgm's or diffusers'; None for
    what is in no block.
    """
    if found := re.match(r"(in|out)put_blocks\.(\d+)\.", path):
        return f"{found[1].upper()}{int(found[2]):02d}"
    if found := re.match(
        r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.", path
    ):
        level, in_level = int(found[2]), int(found[4])
        if found[3].endswith("samplers"):
            in_level = BLOCKS_PER_LEVEL
        number = _STRIDE * level + in_level
        return f"IN{number + 1:02d}" if found[1] == "down" else f"OUT{number:02d}"
    if path.startswith(("middle_block.", "mid_block.")):
        return MIDDLE
    return "IN00" if path == "conv_in" else None


def levels_of(paths: Iterable[str]) -> int:
    """Return a UNet's number of levels, read off its layers' paths: SDXL has three, others four."""
    names = [block_of(path) or "" for path in paths]
    last = max((int(name[3:]) for name in names if name.startswith("OUT")), default=-1)
    return SDXL_LEVELS if 0 <= last < _STRIDE * SDXL_LEVELS else LEVELS


def block_names(levels: int) -> list[str]:
    """Return the names of a UNet's blocks in the order in which it runs."""
    numbers = range(_STRIDE * levels)
    return (
        [f"IN{number:02d}" for number in numbers]
        + [MIDDLE]
        + [f"OUT{number:02d}" for number in numbers]
    )


def read_blocks(text: str, levels: int) -> dict[str, BlockRank]:
    """Read a list of blocks; a later entry wins over an earlier one. Raises `Refused` (field
    "lora_blocks").
    """
    chosen: dict[str, BlockRank] = {}
    for entry, names, rank_text in _entries(text, levels, "lora_blocks"):
        rank = BlockRank() if rank_text is None else _read_rank(entry, rank_text)
        chosen.update(dict.fromkeys(names, rank))
    return chosen


def read_block_rates(text: str, levels: int) -> dict[str, float]:
    """Read a list such as `IN04-IN08=0.5, MID=0`: factors of the learning rate; a later entry wins.
    Raises `Refused` (field "block_learning_rates").
    """
    chosen: dict[str, float] = {}
    for entry, names, factor in _entries(text, levels, RATES_FIELD):
        if BASE in names:
            raise _refused(
                f"{BASE}, the text encoder, has a rate of its own: set Learning rate, text"
                " encoder.",
                RATES_FIELD,
            )
        chosen.update(dict.fromkeys(names, _read_factor(entry, factor or "")))
    return chosen


def _entries(text: str, levels: int, field: str) -> Iterator[tuple[str, list[str], str | None]]:
    """Yield each entry of a list as it is written, the blocks that it names, and the text behind
    its "=", None without one.
    """
    names = block_names(levels)
    without_blanks = re.sub(r"\s*([-–=:])\s*", r"\1", text.strip()).replace("–", "-")
    for entry in re.split(r"[\s,;]+", without_blanks):
        name, equals, value = entry.partition("=")
        name = PRESETS[levels].get(name.lower(), name).upper()
        if name:
            yield entry, _blocks_in_range(name, names, field), value if equals else None


def _blocks_in_range(name: str, names: list[str], field: str) -> list[str]:
    """Return the blocks of `IN04`, `IN04-IN08`, `IN04-08` or `IN08-OUT02`, in the UNet's order."""
    first, dash, last = name.partition("-")
    first = _check_block(first, names, field)
    if not dash:
        return [first]
    side = re.sub(r"\d+", "", first)  # IN of IN04
    last = _check_block(side + last if last.isdigit() else last, names, field)
    between = names[names.index(first) : names.index(last) + 1] if BASE not in (first, last) else []
    if not between:
        raise _refused(
            f"{name!r} is no range: {last} does not come after {first}. Blocks run from {names[0]}"
            f" by {MIDDLE} to {names[-1]}.",
            field,
        )
    return between


def _check_block(name: str, names: list[str], field: str) -> str:
    found = re.fullmatch(r"(IN|OUT)(\d+)", name)
    full = f"{found[1]}{int(found[2]):02d}" if found else name
    if full in names or full == BASE:
        return full
    presets = PRESETS[len(names) // 2 // _STRIDE]
    near = difflib.get_close_matches(
        full, [*names, BASE, *map(str.upper, presets)], n=1, cutoff=0.5
    )
    advice = ""
    if near:
        is_block = near[0] in (*names, BASE)
        advice = f" Did you mean {near[0] if is_block else near[0].lower()}?"
    raise _refused(
        f"There is no block {name!r} in this model. It has {names[0]} to"
        f" {names[len(names) // 2 - 1]}, {MIDDLE}, {names[len(names) // 2 + 1]} to {names[-1]}, and"
        f" {BASE}, the text encoder; presets are {', '.join(presets)}.{advice}",
        field,
    )


def _read_rank(entry: str, text: str) -> BlockRank:
    found = re.fullmatch(r"(\d+)(?::(\d+(?:\.\d*)?|\.\d+))?", text)
    rank = int(found[1]) if found else -1
    alpha = float(found[2]) if found and found[2] else None
    if not 0 <= rank <= MOST_RANK or (alpha is not None and not 0 < alpha <= MOST_ALPHA):
        raise _refused(
            f"{entry!r} is not understood. Write a block's rank and alpha as MID=64:32: the rank"
            f" from 0, which leaves the block out, to {MOST_RANK}, the alpha above 0 and up to"
            f" {MOST_ALPHA:g}.",
            "lora_blocks",
        )
    return BlockRank(rank, alpha)


def _read_factor(entry: str, text: str) -> float:
    is_number = re.fullmatch(r"(\d+(\.\d*)?|\.\d+)(E-?\d{1,3})?", text.upper())
    factor = float(text) if is_number else -1.0
    if not 0 <= factor <= MOST_RATE_FACTOR:
        raise _refused(
            f"{entry!r} is not understood. Write how fast a block learns as MID=0.5, half as fast:"
            f" from 0, which leaves it out, to {MOST_RATE_FACTOR:g}.",
            RATES_FIELD,
        )
    return factor


def _refused(sentence: str, field: str) -> Refused:
    title = "Learning rates of blocks" if field == RATES_FIELD else "Blocks"
    return Refused(f"{title}: {sentence}", field=field, code=ErrorCode.BAD_VALUE)
