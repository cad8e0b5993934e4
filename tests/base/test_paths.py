"""Paths that a user or a request names: only those that may be read."""

import itertools
import os
from pathlib import Path

import pytest

from lora_trainer.base.errors import Refused
from lora_trainer.base.paths import (
    PathRules,
    check_inside,
    check_path_length,
    check_regular_file,
    expand_user,
    foreign_host,
    is_inside,
    numbered_paths,
    request_for_host,
)

links = pytest.mark.skipif(os.name == "nt", reason="links need a right on Windows")


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root" / "cats").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    return tmp_path / "root"


def test_a_path_of_no_user_stays_as_it_is_written(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert expand_user("~/cats") == tmp_path / "cats"
    assert expand_user("~nobody-of-this-name/cats") == Path("~nobody-of-this-name/cats")


def test_numbered_paths_begin_with_two():
    found = itertools.islice(numbered_paths(Path("loras/zib.v1.safetensors")), 2)
    assert [path.as_posix() for path in found] == [
        "loras/zib.v1-2.safetensors",
        "loras/zib.v1-3.safetensors",
    ]


@pytest.mark.parametrize(
    "path, fits",
    [
        ("a" * 255, True),
        ("a" * 256, False),
        ("猫" * 85, True),
        ("猫" * 86, False),
        ("/".join(["a" * 99] * 30), True),
        ("/".join(["a" * 99] * 31), False),
    ],
)
def test_the_length_of_a_path_counts_in_bytes(path, fits):
    if fits:
        check_path_length(Path(path))
    else:
        with pytest.raises(Refused, match="too long") as caught:
            check_path_length(Path(path))
        assert caught.value.code == "bad_value"


def test_a_path_is_inside_the_roots_or_refused(root):
    check_inside(root, [root])
    check_inside(root / "cats" / "not there yet", [root.parent / "elsewhere", root])
    for path in (root.parent, root / ".." / "elsewhere", root / "cats" / ".." / "..", Path("/")):
        with pytest.raises(Refused, match="only folders inside") as caught:
            check_inside(path, [root])
        assert caught.value.code == "forbidden_path"
    with pytest.raises(Refused):
        check_inside(root.parent / "root-of-another", [root])
    with pytest.raises(Refused):
        check_inside(root, [])


@links
def test_links_are_followed(root):
    (root / "out").symlink_to(root.parent / "elsewhere")
    (root / "in").symlink_to(root / "cats")
    (root / "circle").symlink_to(root / "circle")
    check_inside(root / "in", [root])
    assert is_inside(root / "in", root) and not is_inside(root / "out", root)
    with pytest.raises(Refused):
        check_inside(root / "out", [root])
    (root.parent / "link to root").symlink_to(root)
    check_inside(root / "cats", [root.parent / "link to root"])
    assert is_inside(root / "cats", root.parent / "link to root")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes by name")
def test_only_a_file_is_a_regular_file(root):
    (root / "a.txt").write_text("x")
    check_regular_file(root / "a.txt")
    with pytest.raises(Refused, match="cats is a folder"):
        check_regular_file(root / "cats")
    os.mkfifo(root / "pipe")
    with pytest.raises(Refused, match="a pipe, a socket or a device") as caught:
        check_regular_file(root / "pipe")
    assert caught.value.code == "not_a_file"
    with pytest.raises(FileNotFoundError):
        check_regular_file(root / "none")


def test_the_host_of_a_request_is_known_while_it_is_answered():
    assert foreign_host() == ""
    with request_for_host("evil.example"):
        assert foreign_host() == "evil.example"
        with request_for_host(""):
            assert foreign_host() == ""
        assert foreign_host() == "evil.example"
    assert foreign_host() == ""


def test_where_only_this_machine_asks_every_path_may_be_named(root):
    rules = PathRules(None, [root])
    rules.check(root.parent / "elsewhere")
    rules.check_deletion()
    assert rules.is_local_request() and rules.permits(Path("/"))
    assert not rules.permits(Path("a" * 300))


def test_a_request_by_a_foreign_name_is_held_to_the_foreign_roots(root):
    rules = PathRules(None, [root])
    with request_for_host("evil.example"):
        assert rules.permits(root / "cats") and not rules.permits(root.parent / "elsewhere")
        assert not rules.is_local_request()
        with pytest.raises(Refused, match="evil.example, which is not this machine's name"):
            rules.check(root.parent / "elsewhere")
        with pytest.raises(Refused, match="nothing is removed for good"):
            rules.check_deletion()
        PathRules(None, None).check(root.parent / "elsewhere")
        PathRules(None, None).check_deletion()


def test_where_others_can_ask_the_roots_hold_for_all(root):
    rules = PathRules([root], None)
    assert rules.permits(root / "cats") and not rules.permits(root.parent / "elsewhere")
    assert not rules.is_local_request()
    rules.check_deletion()


def test_a_folder_on_another_machine_is_not_even_looked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(
        Path,
        "resolve",
        lambda path, strict=False: (
            path if path == tmp_path else pytest.fail("Windows would send a password hash there")
        ),
    )
    for path in (r"\\server\share", "//server/share/x", r"\\?\UNC\server\share", r"\\.\pipe\x"):
        with pytest.raises(Refused):
            check_inside(Path(path), [tmp_path])
