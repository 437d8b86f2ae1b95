import numpy as np
import pytest
from PIL import Image

from nfc_gs.captures.pictures import (
    DatasetError,
    develop,
    downscaled,
    find_picture,
    is_scaled,
    read_header,
    read_pixels,
)


def test_sizes_are_rounded_half_up():
    assert downscaled(1076, 1915, 2) == (538, 958)
    assert downscaled(1076, 1915, 4) == (269, 479)
    assert downscaled(40, 1, 8) == (5, 1)
    assert downscaled(1, 1, 1) == (1, 1)
    with pytest.raises(DatasetError, match="downscale=8 leaves one pixel of a picture of 8x3"):
        downscaled(8, 3, 8)


@pytest.mark.parametrize(
    "size", [(538, 957), (538, 958), (269, 478), (269, 479), (134, 240), (1076, 1915), (800, 1424)]
)
def test_rounded_copies_are_scaled_copies(size):
    assert is_scaled(size, (1076, 1915))


@pytest.mark.parametrize("size", [(1915, 1076), (538, 900), (1000, 1000)])
def test_other_shapes_are_not(size):
    assert not is_scaled(size, (1076, 1915))


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "RGB"])
def test_every_kind_of_picture_becomes_three_channels(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode).save(path)
    assert np.array_equal(read_pixels(path), np.full((4, 5, 3), 255))


def test_sixteen_bit_greys_are_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert read_pixels(tmp_path / "a.png")[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(("orientation", "turn"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_upright_pictures_are_turned_as_exif_says(tmp_path, orientation, turn):
    pixels = np.zeros((16, 32, 3), dtype=np.uint8)
    pixels[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert read_header(tmp_path / "a.jpg").turned is (turn % 2 == 1)
    # JPEG leaves ringing of a few levels.
    np.testing.assert_allclose(read_pixels(tmp_path / "a.jpg").astype(int), pixels, atol=20)
    np.testing.assert_allclose(
        read_pixels(tmp_path / "a.jpg", upright=True).astype(int), np.rot90(pixels, turn), atol=20
    )


def test_an_averaged_pixel_counts_only_if_all_of_it_counts():
    counts = np.full((4, 4), 255, dtype=np.uint8)
    counts[0, 0] = 0
    photograph = develop(np.zeros((4, 4, 3), dtype=np.uint8), size=(2, 2), counts=counts)
    assert photograph.mask.tolist() == [[False, True], [True, True]]


def test_averaging_to_a_rounded_size_keeps_the_mean():
    ramp = np.repeat(np.arange(0, 250, 10, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(9, axis=0)
    photograph = develop(ramp, size=(13, 5))
    # Rounding to 8 bits moves a mean of 65 values by less than half a level.
    assert photograph.rgb.mean() == pytest.approx(ramp.mean(), abs=0.5)


def test_pictures_are_found_under_other_endings(tmp_path):
    (tmp_path / "a.jpg").touch()
    (tmp_path / "b.1.png").touch()
    assert find_picture(tmp_path / "a.png") == tmp_path / "a.jpg"
    assert find_picture(tmp_path / "a") == tmp_path / "a.jpg"
    assert find_picture(tmp_path / "b.1") == tmp_path / "b.1.png"
    assert find_picture(tmp_path / "c.png") is None


def test_missing_and_broken_pictures_are_named_in_one_line(tmp_path):
    with pytest.raises(DatasetError, match=r"a\.png: no such picture"):
        read_header(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"a\.png: is not a picture"):
        read_header(tmp_path / "a.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)).save(tmp_path / "b.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:900])
    with pytest.raises(DatasetError, match=r"b\.jpg: the picture is corrupt"):
        read_pixels(tmp_path / "b.jpg")


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(64, 48), (37, 53), (1, 1)])
def test_jpegs_are_read_as_pillow_reads_them(tmp_path, subsampling, progressive, size):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path = tmp_path / "a.jpg"
    Image.fromarray(pixels).save(path, quality=90, subsampling=subsampling, progressive=progressive)
    with Image.open(path) as picture:
        expected = np.array(picture.convert("RGB"))
    assert np.array_equal(read_pixels(path), expected)


def test_a_jpeg_cut_short_is_not_shown_in_part(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DatasetError, match="corrupt"):
        read_pixels(path)
