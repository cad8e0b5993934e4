"""Figures that users are given as advice, each in one place: remarks, presets and the README say
the same.
"""

SUBJECT_PICTURES = (15, 50)  # of a character or a thing
STYLE_PICTURES = (50, 200)


def in_words(pictures: tuple[int, int]) -> str:
    """Return "15 to 50"."""
    return f"{pictures[0]} to {pictures[1]}"
