"""Pictures as people have them: what can be used, what is said of the rest, and what the trainer
sees of each.
"""

import numpy as np
import pytest
from PIL import Image

from lora_trainer.base.errors import Refused
from lora_trainer.dataset.buckets import Bucket, assign_bucket, epoch_batches
from lora_trainer.dataset.images import load_pixels, read_rgb
from lora_trainer.dataset.scan import Picture, examine, look, scan


def test_kohya_folders_give_repeats_and_class_words(tmp_path):
    (tmp_path / "10_blue_cat").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "10_blue_cat" / "a.png")
    pictures, problems = scan(tmp_path)
    assert [(picture.repeats, picture.caption) for picture in pictures] == [
        (10, "blue cat")
    ] and not problems


@pytest.mark.parametrize(
    "size, expected",
    [
        ((1000, 1000), (512, 512)),
        ((1920, 1080), (640, 384)),
        ((1080, 1920), (384, 640)),
        ((3000, 1000), (832, 256)),
    ],
)
def test_buckets_keep_the_shape_and_the_area(size, expected):
    bucket = assign_bucket(*size, resolution=512)
    assert (bucket.width, bucket.height) == expected and bucket.width * bucket.height <= 512 * 512


def test_without_buckets_everything_is_square():
    assert assign_bucket(1920, 1080, resolution=512, enable_bucket=False) == Bucket(512, 512)


def test_pixels_cover_the_bucket_from_the_middle(tmp_path):
    values = np.zeros((64, 192, 3), np.uint8)
    values[:, 64:128] = 255  # a white middle third
    Image.fromarray(values).save(tmp_path / "a.png")
    pixels, size = load_pixels(tmp_path / "a.png", Bucket(64, 64))
    assert pixels.shape == (3, 64, 64) and pixels.min() == 1.0
    assert (size.original_width_px, size.crop_left_px, size.target_width_px) == (192, 64, 64)
    assert load_pixels(tmp_path / "a.png", Bucket(64, 64), whole=True)[0].shape == (3, 64, 192)


def test_exif_rotation(tmp_path):
    image = Image.new("RGB", (100, 50), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert (examine(tmp_path / "a.jpg").width, read_rgb(tmp_path / "a.jpg").size) == (50, (50, 100))


def test_cmyk_16_bit_palette_and_transparency(tmp_path):
    Image.new("CMYK", (32, 32), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    Image.fromarray(np.full((32, 32), 65535, np.uint16)).save(tmp_path / "grey16.png")
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert np.asarray(read_rgb(tmp_path / "cmyk.jpg"))[0, 0, 0] > 180
    assert np.asarray(read_rgb(tmp_path / "grey16.png")).min() == 255
    assert np.asarray(read_rgb(tmp_path / "clear.png")).min() == 255
    assert "transparent parts become white" in examine(tmp_path / "clear.png").warnings


@pytest.mark.parametrize("thorough", [True, False])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_the_first_page_of_a_tiff_is_used(tmp_path, compression, thorough):
    path = tmp_path / "a.tif"
    Image.new("RGB", (64, 48), "red").save(
        path,
        save_all=True,
        append_images=[Image.new("RGB", (32, 32), "blue")],
        compression=compression,
    )
    found = examine(path, thorough=thorough)
    assert (
        isinstance(found, Picture)
        and (found.width, found.height) == (64, 48)
        and found.warnings == ("several pages: only the first is used", "no caption")
    )
    assert look(path, 32)[1].getpixel((0, 0)) == read_rgb(path).getpixel((0, 0)) == (255, 0, 0)


def test_animated_gif_uses_the_first_frame(tmp_path):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    found = examine(tmp_path / "a.gif")
    assert isinstance(found, Picture) and "animated: only the first frame is used" in found.warnings
    assert np.asarray(read_rgb(tmp_path / "a.gif"))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    "name, make, sentence",
    [
        ("text.png", lambda path: path.write_text("hello"), "is not a picture"),
        ("empty.png", lambda path: path.write_bytes(b""), "is not a picture"),
        (
            "dot.png",
            lambda path: Image.new("RGB", (1, 1)).save(path),
            "is 1x1; a side needs at least 16",
        ),
        (
            "thin.png",
            lambda path: Image.new("RGB", (20000, 30)).save(path),
            "20000x30; one side may be at most 8 times",
        ),
        ("script.png", lambda path: path.write_text("<svg onload=alert(1)>"), "is not a picture"),
    ],
)
def test_what_cannot_be_used_is_said(tmp_path, name, make, sentence):
    make(tmp_path / name)
    pictures, problems = scan(tmp_path)
    assert not pictures and sentence in problems[0].reason and name in problems[0].reason


def test_truncated_jpeg(tmp_path):
    Image.effect_noise((200, 200), 80).convert("RGB").save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:3000])
    assert "damaged or cut off" in scan(tmp_path)[1][0].reason


def test_bomb_is_refused_without_decoding(tmp_path, monkeypatch):
    import lora_trainer.dataset.scan as dataset

    monkeypatch.setattr(dataset, "MOST_PIXELS", 1000)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    assert "million pixels" in scan(tmp_path)[1][0].reason


def test_folder_that_is_not_there(tmp_path):
    with pytest.raises(Refused, match="does not exist"):
        scan(tmp_path / "no")
    (tmp_path / "file").write_text("x")
    with pytest.raises(Refused, match="is a file, not a folder"):
        scan(tmp_path / "file")


def test_batches_hold_one_bucket_each_and_every_picture_once():
    buckets = [Bucket(64, 64)] * 5 + [Bucket(96, 32)] * 2
    batches = epoch_batches(buckets, [1] * 7, batch_size=3, seed=1, epoch=0)
    assert sorted(number for batch in batches for number in batch) == list(range(7))
    assert (
        all(len({buckets[number] for number in batch}) == 1 for batch in batches)
        and len(batches) == 3
    )
    assert (
        batches
        == epoch_batches(buckets, [1] * 7, batch_size=3, seed=1, epoch=0)
        != epoch_batches(buckets, [1] * 7, batch_size=3, seed=2, epoch=0)
    )
