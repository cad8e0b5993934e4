"""Limits for regular expressions of strangers: of their size before they are compiled, and of the
time and the result when they replace.

The package `regex` writes counted repeats such as a{9999} out while it compiles, so that a short
pattern can take any amount of memory, and no time limit ends a compilation.
"""

import re

import regex

from ..base.errors import ErrorCode, Refused

LARGEST_PATTERN = 20_000  # characters with repeats written out, about 10 MB and 50 ms to compile
MOST_GROUPS = 200
DEEPEST = 50  # groups in groups
_COUNTED = re.compile(r"\{(\d*)(?:,\d*)?\}", re.ASCII)
_CALL = re.compile(r"\(\?(?:R|[+-]?\d+|&|P>)")  # of the whole pattern, or of one of its groups
_PROPERTY = re.compile(r"\\[pP]\{[\w ^&:=.-]*\}", re.ASCII)
_COMMENT = re.compile(r"\(\?#(?:[^)\\]|\\.)*\)?", re.DOTALL)  # a backslash escapes in it, too
_POSIX_CLASS = re.compile(r"\[:\^?[A-Za-z0-9]+:\]")
_MAY_BE_NOTHING = re.compile(r"\(\?#.*|\(\?[a-zA-Z0-9-]*\)|\}", re.DOTALL)
_FLAGS = re.compile(r"\(\?[a-zA-Z0-9-]*?(V1|x)[a-zA-Z0-9-]*[:)]")


def compile_pattern(pattern: str, *, match_case: bool) -> regex.Pattern:
    """Compile a pattern; raises `Refused` for one that is too large or cannot be read."""
    _check_features(pattern)
    if _Size(pattern).whole() > LARGEST_PATTERN:
        raise _unusable(
            f"its repeats make it longer than {LARGEST_PATTERN:,} characters. Use smaller numbers"
            " in { }, or * and +"
        )
    try:
        return regex.compile(pattern, _flags(match_case))
    except (
        regex.error,
        RecursionError,
        OverflowError,
        MemoryError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
    ) as error:
        raise _unreadable(error) from error


def compile_literal(text: str, *, match_case: bool) -> regex.Pattern:
    """Return the pattern that finds this very text."""
    return regex.compile(regex.escape(text, special_only=True), _flags(match_case))


def substitute(
    pattern: regex.Pattern, replacement: str, text: str, *, seconds: float, longest: int
) -> str:
    """Replace every match in a text.

    Raises `Refused` when it takes longer than `seconds`, and before a result of more than `longest`
    characters is made.
    """
    length = len(text)

    def expand_match(match: regex.Match) -> str:
        nonlocal length
        widest = max((len(group) for group in (match[0], *match.groups()) if group), default=0)
        if (
            len(replacement) + replacement.count("\\") * widest > longest
            and len(replacement) + _length_of_groups(match, replacement) > longest
        ):
            raise _too_long(longest)
        made = match.expand(replacement)
        length += len(made) - len(match[0])
        if length > longest:
            raise _too_long(longest)
        return made

    try:
        return pattern.sub(expand_match, text, timeout=seconds)
    except TimeoutError as error:
        raise Refused(
            "The regular expression takes too long on these captions; make it simpler.",
            field="find",
            code=ErrorCode.BAD_VALUE,
        ) from error
    except (RecursionError, MemoryError) as error:
        raise Refused(
            "The regular expression takes too much memory on these captions; make it simpler.",
            field="find",
            code=ErrorCode.BAD_VALUE,
        ) from error
    except (regex.error, IndexError, ValueError, KeyError) as error:
        why = "invalid group reference" if isinstance(error, IndexError) else error
        raise Refused(
            f"The replacement cannot be used: {why}. \\1 is the first group in parentheses, \\\\ a"
            " backslash.",
            field="replace",
            code=ErrorCode.BAD_VALUE,
        ) from error


def _flags(match_case: bool) -> int:
    return regex.VERSION0 if match_case else regex.VERSION0 | regex.IGNORECASE


def _too_long(longest: int) -> Refused:
    return Refused(
        f"A caption would become longer than {longest:,} characters.",
        field="replace",
        code=ErrorCode.BAD_VALUE,
    )


def _length_of_groups(match: regex.Match, replacement: str) -> int:
    """Return how long the groups are that a replacement names, together."""
    found = re.findall(r"\\(?:g<(\w+)>|(\d{1,2})|\\)", replacement)
    named = [
        int(name) if name.isdecimal() else name for pair in found if (name := pair[0] or pair[1])
    ]
    return sum(len(match[name] or "") for name in named)


def _check_features(pattern: str) -> None:
    if _CALL.search(pattern):
        raise _unusable(
            "it calls itself or one of its groups, as (?R) does, which has no end to it"
        )
    if flags := _FLAGS.search(pattern):
        raise _unusable(f"it sets the flag {flags[1]}, which is not used here")
    if pattern.count("(") > MOST_GROUPS:
        raise _unusable(f"it has more than {MOST_GROUPS} groups")


class _Size:
    """Counts the characters of a pattern with its counted repeats written out, as far as it has to
    understand it: groups, sets, escapes, and counts in braces.

    Where `regex` may read a pattern in another way, the larger number is counted: a fuzzy `{e<=2}`
    is no count, any other braces are one. A count behind a comment, a flag or a brace may belong to
    what stands before these, and is applied to the whole sequence.
    """

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0  # how far it is read

    def whole(self) -> int:
        """Return the number of characters; raises `Refused` where groups are not closed."""
        size = self._sequence(0)
        if self._at < len(self._pattern):
            raise _unreadable("a parenthesis is closed that was never opened")
        return size

    def _sequence(self, depth: int) -> int:
        """Count up to the end of a group, or of all."""
        if depth > DEEPEST:
            raise _unusable(f"its groups are nested deeper than {DEEPEST}")
        total = 0
        while self._at < len(self._pattern) and self._pattern[self._at] != ")":
            start = self._at
            item = self._item(depth)
            may_be_nothing = _MAY_BE_NOTHING.fullmatch(self._pattern, start, self._at)
            while count := _COUNTED.match(self._pattern, self._at):
                if may_be_nothing:
                    item += total
                    total = 0
                item *= _times(count)
                self._at = count.end()
                while self._pattern[self._at : self._at + 1] in ("?", "+"):  # lazy, possessive
                    self._at += 1
            total += item
        return total

    def _item(self, depth: int) -> int:
        pattern, at = self._pattern, self._at
        if skipped := _COMMENT.match(pattern, at) or _PROPERTY.match(pattern, at):
            self._at = skipped.end()
            return 0 if pattern[at] == "(" else 1
        if pattern[at] == "(":
            self._at += 1
            size = self._sequence(depth + 1)
            if self._at >= len(pattern):
                raise _unreadable("a parenthesis is not closed")
            self._at += 1
            return size + 1
        if pattern[at] == "[":
            self._at = _end_of_set(pattern, at)
        else:
            self._at += 2 if pattern[at] == "\\" else 1
        return 1


def _end_of_set(pattern: str, at: int) -> int:
    """Return where a set such as [^]a-z] has ended."""
    at += 2 if pattern.startswith("[^", at) else 1
    if pattern.startswith("]", at):  # a bracket that comes first belongs to the set
        at += 1
    while at < len(pattern) and pattern[at] != "]":
        if pattern.startswith("[:", at):
            if not (named := _POSIX_CLASS.match(pattern, at)):
                raise _unusable("it has [: in a set. Write \\[ for a bracket there")
            at = named.end()
        else:
            at += 2 if pattern[at] == "\\" else 1
    return at + 1


def _times(count: re.Match) -> int:
    """Return how often `regex` writes something out for a count such as {2,5}: the lower number."""
    return max(1, int(count[1][:12] or 1))


def _unusable(why: str) -> Refused:
    return Refused(
        f"The regular expression cannot be used: {why}.", field="find", code=ErrorCode.BAD_VALUE
    )


def _unreadable(why: object) -> Refused:
    return Refused(
        f"The regular expression cannot be read: {why or 'too large'}.",
        field="find",
        code=ErrorCode.BAD_VALUE,
    )
