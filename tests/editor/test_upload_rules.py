"""Single uploaded files: which are saved, under which names, and what is refused."""

import pytest

from lora_trainer.base.errors import Refused
from tests.support.uploaded import png


def test_a_caption_file_is_found_whatever_the_case_of_its_ending(library):
    for name in ("a", "b"):
        library.add("cats", f"{name}.PNG", png())
    assert (library.add("cats", "a.TXT", b"a cat"), library.add("cats", "b.Caption", b"b cat")) == (
        "a.txt",
        "b.caption",
    )
    assert library.open("cats").captions() == {"a.PNG": "a cat", "b.PNG": "b cat"}


def test_the_same_file_again_is_fine_but_another_of_its_name_is_not(library):
    library.add("cats", "a.png", png())
    library.add("cats", "a.png", png())
    with pytest.raises(Refused, match="is there already"):
        library.add("cats", "a.png", png("blue"))


@pytest.mark.parametrize(
    "name, data, sentence",
    [
        ("a.png", b"hello", "a.png is not a picture"),
        ("a.exe", b"MZ", "neither a picture"),
        (".png", png(), "cannot be used as a file name"),
        ("a.png", png(size=(1, 1)), "needs at least 16"),
        ("x" * 250 + ".png", png(), "cannot be used"),
        ("a.txt", b"x" * 200_000, "at most 0.1 MB"),
        ("", png(), "cannot"),
    ],
)
def test_bad_uploads_leave_nothing(library, name, data, sentence):
    with pytest.raises(Refused, match=sentence):
        library.add("cats", name, data)
    assert [path for path in library.path("cats").iterdir() if path.name != ".train_lora"] == []


@pytest.mark.parametrize(
    "name", ["../../evil.png", "/etc/evil.png", "C:\\windows\\evil.png", "..\\evil.png"]
)
def test_uploads_never_leave_the_folder(library, name):
    assert library.add("cats", name, png()) == "evil.png"
    assert (library.path("cats") / "evil.png").is_file()


def test_of_two_uploads_of_one_name_at_once_one_is_refused(library):
    from concurrent.futures import ThreadPoolExecutor

    def add(colour):
        try:
            return library.add("cats", "a.png", png(colour, (400, 400)))
        except Refused as error:
            return error.code

    for _ in range(5):
        with ThreadPoolExecutor(2) as pool:
            assert sorted(pool.map(add, ("red", "blue"))) == ["a.png", "exists"]
        (library.path("cats") / "a.png").unlink()
