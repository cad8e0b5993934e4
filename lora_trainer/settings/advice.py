"""Numbers that users are given as advice, each in one place: a plan's warnings, the presets' help
and the README say the same.
"""

SUBJECT_PICTURES = (15, 50)  # of a character or a thing
STYLE_PICTURES = (50, 200)


def in_words(pictures: tuple[int, int]) -> str:
    """Return a range as text: "15 to 50"."""
    return f"{pictures[0]} to {pictures[1]}"
