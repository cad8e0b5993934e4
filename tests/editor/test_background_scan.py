"""The scan of a data set's pictures: what it keeps, and what may go wrong with that."""

import pytest
from PIL import Image

from lora_trainer.editor.background_scan import BackgroundScan
from tests.support.waiting import until


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.new("RGB", (80, 60), "red").save(path)
    return path


def test_what_was_scanned_is_known_to_the_next(tmp_path, picture):
    scan = BackgroundScan(tmp_path / "home")
    assert scan.known(picture, picture.stat()) is None
    scan.start([picture])
    result = until(lambda: scan.known(picture, picture.stat()))
    scan.close()
    again = BackgroundScan(tmp_path / "home")
    assert (result.facts.width, result.facts.height) == (80, 60)
    assert again.known(picture, picture.stat()) == result
    again.close()


def test_a_full_disk_costs_the_cache_and_not_the_result(tmp_path, picture):
    scan = BackgroundScan(tmp_path / "home")
    pages = scan._database.execute("pragma page_count").fetchone()[0]
    scan._database.execute(f"pragma max_page_count = {pages}")
    broken = [tmp_path / f"{'long' * 40}-{number}.png" for number in range(40)]
    for path in broken:  # until the last page is full
        path.write_bytes(b"no picture")
    scan.start([*broken, picture])
    assert until(lambda: scan.known(picture, picture.stat())).facts.width == 80
    assert scan.thumbnail(picture).is_file()
    scan.close()
    kept = BackgroundScan(tmp_path / "home")
    assert kept.known(broken[-1], broken[-1].stat()) is None
    kept.close()


def test_a_thumbnail_is_made_when_its_data_set_was_just_closed(tmp_path, picture):
    scan = BackgroundScan(tmp_path / "home")
    scan.close()
    assert scan.thumbnail(picture).is_file()
