import numpy as np
import pytest
import torch
from PIL import Image

from nfc_gs.evaluation.pictures import (
    PictureError,
    colour_depth,
    colour_error,
    contact_sheet,
    file_names,
    render_split,
    to_bytes,
    write_png,
)
from tests.disk import full_beyond
from tests.evaluation.scene import HEIGHT, WIDTH, flat, model, view


def test_every_byte_survives():
    levels = torch.arange(256).float().div(255).reshape(16, 16)
    assert (to_bytes(levels).ravel() == np.arange(256)).all()


def test_numbers_out_of_range_are_clamped():
    picture = torch.tensor([[-1.0, 2.0, float("nan"), 0.4 / 255, 0.6 / 255]])
    assert to_bytes(picture).tolist() == [[0, 255, 0, 0, 1]]


@pytest.mark.parametrize("shape", [(5, 7, 3), (5, 7)], ids=["rgb", "grey"])
def test_a_png_read_by_another_library_is_the_same(tmp_path, shape):
    picture = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    write_png(picture, tmp_path / "new" / "picture.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "picture.png")), picture)


def test_a_png_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PictureError, match="cannot be written"):
        write_png(np.zeros((2, 2), np.uint8), tmp_path / "file" / "picture.png")


def test_near_things_are_brighter_and_nothing_is_black():
    alpha = torch.tensor([[1.0, 0.5, 0.0, 1.0]])
    expected = torch.tensor([[1.0, 1.0, 9.0, 4.0]])
    colours = colour_depth(expected * alpha, alpha).astype(int)
    assert (colours[0, 0] == colours[0, 1]).all(), "the expected depth does not depend on alpha"
    assert colours[0, 0].sum() > colours[0, 3].sum()
    assert (colours[0, 2] == 0).all()
    assert (colour_depth(torch.zeros(2, 2), torch.zeros(2, 2)) == 0).all()


def test_errors_are_brighter_where_they_are_greater_and_counted():
    x = torch.zeros(1, 3, 3)
    y = torch.tensor([0.0, 0.1, 0.3])[None, :, None].expand(1, 3, 3)
    sums = colour_error(x, y).astype(int).sum(-1)[0]
    assert sums[0] < sums[1] < sums[2]
    masked = colour_error(x, y, torch.tensor([[True, True, False]])).astype(int).sum(-1)[0]
    assert masked[2] == sums[0] and masked[1] == sums[1]


def test_a_sheet_lays_photograph_render_and_error_side_by_side():
    photograph, render = torch.full((20, 30, 3), 0.2), torch.full((20, 30, 3), 0.6)
    sheet = contact_sheet([("a", photograph, render), ("Jürgen's view", photograph, render)])
    assert sheet.shape == (2 * (20 + 18), 90, 3)
    assert (sheet[20:38, :30] == 51).all() and (sheet[20:38, 30:60] == 153).all()
    assert contact_sheet([("a", photograph, render)], width=45).shape == (18 + 10, 45, 3)


def test_labels_of_small_pictures_do_not_run_into_each_other():
    picture = torch.zeros(20, 60, 3)
    sheet = contact_sheet([("a name far longer than its picture is wide", picture, picture)])
    words = sheet[:18].astype(int).max((0, 2)) > 100
    assert words[:60].any() and not words[56:64].any() and words[64:120].any()


def test_names_of_files_never_collide():
    names = ["a.png", "b/a.png", "A.JPG", "a_2", "../a", "frame.0001", "frame.0002", "/", "a.png"]
    chosen = file_names(names)
    assert chosen[:2] == ["a", "b_a"] and chosen[5:7] == ["frame.0001", "frame.0002"]
    assert len({name.casefold() for name in chosen}) == len(names)
    assert not any("/" in name for name in chosen)


@pytest.mark.parametrize("mode", ["rgb", "depth", "alpha", "error"])
def test_every_view_becomes_a_picture(tmp_path, mode):
    views = [view("train/0.png", flat(0)), view("test/0.png", flat(51))]
    paths = render_split(model((0.2, 0.2, 0.2), count=3), views, lambda i: views[i].read(), mode, tmp_path)
    assert [path.name for path in paths] == ["train_0.png", "test_0.png"]
    first, second = (np.asarray(Image.open(path)).astype(int) for path in paths)
    assert first.shape[:2] == (HEIGHT, WIDTH)
    middle = (HEIGHT // 2, WIDTH // 2)
    if mode == "rgb":  # grey 0.5 over the background 0.2; three splats of nearly 0.9 let 0.001 through
        assert np.abs(first[middle] - 127).max() <= 2 and np.abs(first[0, 0] - 51).max() < 60
    elif mode == "alpha":
        assert first.shape == (HEIGHT, WIDTH) and first[middle] >= 254
    elif mode == "error":  # against black and against the background itself
        assert first[middle].sum() > second[0, 0].sum()
    assert (first == second).all() == (mode != "error")


def test_an_unknown_mode_is_one_line(tmp_path):
    with pytest.raises(PictureError, match="no render mode 'dpeth': one of rgb, depth"):
        render_split(model(), [], lambda i: flat(0), "dpeth", tmp_path)


def test_pictures_of_a_split_are_all_there_or_none(tmp_path):
    views = [view(f"{i}.png", flat(0)) for i in range(3)]

    def read(i):
        if i == 2:
            raise PictureError("no more")
        return views[i].read()

    drawn = model((0.2, 0.2, 0.2), count=3)
    with pytest.raises(PictureError, match="no more"):
        render_split(drawn, views, read, "error", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    # Wherever it is seen from, a picture is more than ten bytes.
    with full_beyond(10), pytest.raises(PictureError, match=r"new/0.png: cannot be written: File too large"):
        render_split(drawn, views, read, "rgb", tmp_path / "new")
    assert not (tmp_path / "new").exists()
