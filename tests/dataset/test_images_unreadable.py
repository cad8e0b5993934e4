"""Images that cannot be read just now: that says nothing about the file, and is not kept."""

import errno
import traceback
import warnings

import pytest
from PIL import Image

from lora_trainer.base.errors import ErrorCode, Refused
from lora_trainer.dataset import images
from lora_trainer.dataset.buckets import Bucket
from lora_trainer.dataset.images import opened, read_facts
from lora_trainer.dataset.masks import check_mask, load_mask
from lora_trainer.dataset.sample import Picture
from lora_trainer.dataset.scan import Problem, scan
from lora_trainer.editor import picture_files
from lora_trainer.editor.background_scan import BackgroundScan, ScanResult
from tests.support.waiting import until

NOW = [PermissionError(errno.EACCES, "Permission denied"), OSError(errno.EIO, "I/O error")]


@pytest.fixture
def picture(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (64, 64), "red").save(folder / "a.png")
    Image.new("RGBA", (64, 64), "red").save(folder / "b.png")
    return folder / "a.png"


@pytest.fixture
def failing(monkeypatch):
    """Let Pillow fail at the file a.png, until it is undone."""

    def fail(error):
        real_open = Image.open

        def failing_open(path, *args, **kwargs):
            if path.name == "a.png":
                raise error
            return real_open(path, *args, **kwargs)

        monkeypatch.setattr(Image, "open", failing_open)
        return monkeypatch

    return fail


@pytest.mark.parametrize("thorough", [True, False])
@pytest.mark.parametrize("error", [*NOW, MemoryError()], ids=repr)
def test_what_the_system_refuses_is_no_damage_and_is_tried_again(picture, failing, error, thorough):
    patched = failing(error)
    usable, problems = scan(picture.parent, thorough=thorough)
    assert [each.path.name for each in usable] == ["b.png"]
    assert [problem.path for problem in problems] == [picture]
    assert "damaged" not in problems[0].reason
    patched.undo()
    assert len(scan(picture.parent, thorough=thorough)[0]) == 2


def test_a_file_that_is_cut_off_is_damaged(picture):
    picture.write_bytes(picture.read_bytes()[:-30])
    with pytest.raises(Refused) as refused:
        read_facts(picture)
    assert refused.value.code == ErrorCode.DAMAGED


def test_a_refusal_that_is_kept_is_raised_anew(picture):
    """One exception, raised again and again, would keep every frame it was raised through."""
    picture.write_bytes(b"no picture")
    found = []
    for _ in range(3):
        with pytest.raises(Refused) as refused:
            read_facts(picture)
        found.append(refused.value)
    assert len({id(error) for error in found}) == 3
    assert len({len(traceback.extract_tb(error.__traceback__)) for error in found[1:]}) == 1
    assert {(error.message, error.code) for error in found} == {
        (found[0].message, ErrorCode.NOT_A_PICTURE)
    }


@pytest.mark.parametrize("error", NOW, ids=repr)
@pytest.mark.parametrize(
    "use",
    [
        lambda path: picture_files.preview(path),
        lambda path: picture_files.rotated(path, 90),
        lambda path: picture_files.training_crop(path, Bucket(64, 64)),
        lambda path: picture_files.prompt_of(path),
        lambda path: load_mask(Picture(path, 64, 64, ""), Bucket(64, 64), mask_path=None),
        lambda path: check_mask(path, Picture(path, 64, 64, "")),
    ],
    ids=["preview", "rotated", "crop", "prompt", "mask", "check"],
)
def test_whoever_needs_the_picture_gets_a_sentence(picture, failing, use, error):
    failing(error)
    with pytest.raises(Refused, match="a.png cannot be read: (Permission denied|I/O error)"):
        use(picture)


def test_the_background_scan_goes_on_and_tries_again_later(tmp_path, picture, failing, monkeypatch):
    patched = failing(OSError(errno.EIO, "I/O error"))
    scanned = BackgroundScan(tmp_path / "home")
    other = picture.with_name("b.png")
    scanned.start([picture, other])
    until(lambda: scanned.known(other, other.stat()))
    found = scanned.known(picture, picture.stat())
    assert found.problem.message == "a.png cannot be read: I/O error."
    scanned.close()
    again = BackgroundScan(tmp_path / "home")
    assert again.known(picture, picture.stat()) is None, "it was kept"
    with pytest.raises(Refused, match="I/O error"):
        again.thumbnail(picture)
    patched.undo()
    monkeypatch.setattr("lora_trainer.editor.background_scan.RETRY_SECONDS", -1)
    assert again.thumbnail(picture).is_file()
    again.close()


def test_a_refusal_of_the_system_that_an_older_version_kept_is_forgotten(tmp_path, picture):
    other = picture.with_name("b.png")
    scanned = BackgroundScan(tmp_path)
    for path, message in ((picture, "[Errno 13] Permission denied"), (other, "truncated")):
        problem = Refused(f"{path.name} is damaged or cut off: {message}.", code=ErrorCode.DAMAGED)
        scanned._keep(path, path.stat(), ScanResult(None, problem))
    scanned.close()
    again = BackgroundScan(tmp_path)
    assert again.known(picture, picture.stat()) is None
    assert again.known(other, other.stat()).problem.code == ErrorCode.DAMAGED
    again.close()


def test_the_filters_of_warnings_are_put_back_before_the_picture_is_used(picture):
    """They belong to the whole process: threads that overlap would leave each other's behind."""
    before = list(warnings.filters)
    with opened(picture):
        assert list(warnings.filters) == before
    assert list(warnings.filters) == before


def test_transparency_is_read_from_the_picture_not_from_a_sentence(picture):
    usable, problems = scan(picture.parent)
    assert [each.has_alpha for each in usable] == [False, True]
    assert not any(isinstance(each, Problem) for each in problems)
    assert usable[1].warnings == ("transparent parts become white", "no caption")
    assert images.read_facts(usable[1].path).warnings == ("transparent parts become white",)
