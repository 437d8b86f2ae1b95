import logging
import shutil

import cv2
import numpy as np
import pycolmap
import pytest
import torch
from PIL import Image

from nfc_gs.captures.lenses import Lens
from nfc_gs.datasets.base import DatasetError
from nfc_gs.datasets.colmap import Colmap

WIDTH, HEIGHT = 400, 300
# Points of about 5 units and pixels up to 400, in float32.
PIXEL_TOLERANCE = 1e-3
# The same, and maps of float32 interpolated between pixels, where they bend by up to 1 / focal length per pixel.
BENT_TOLERANCE = 2e-3
# The scene is scaled and moved in float64, and kept in float32.
PLACE_TOLERANCE = 1e-5
MODELS = {
    "SIMPLE_PINHOLE": [380.0, 201.0, 148.0],
    "PINHOLE": [380.0, 390.0, 201.0, 148.0],
    "SIMPLE_RADIAL": [380.0, 201.0, 148.0, -0.05],
    "RADIAL": [380.0, 201.0, 148.0, -0.05, 0.02],
    "OPENCV": [380.0, 390.0, 201.0, 148.0, -0.05, 0.02, 0.002, -0.001],
    "FULL_OPENCV": [380.0, 390.0, 201.0, 148.0, 0.05, 0.02, 0.002, -0.001, 0.01, 0.02, -0.01, 0.003],
    "OPENCV_FISHEYE": [380.0, 390.0, 201.0, 148.0, 0.03, -0.02, 0.01, -0.002],
    "SIMPLE_RADIAL_FISHEYE": [380.0, 201.0, 148.0, 0.03],
    "RADIAL_FISHEYE": [380.0, 201.0, 148.0, 0.03, -0.02],
    "FOV": [380.0, 390.0, 201.0, 148.0, 0.4],
    "THIN_PRISM_FISHEYE": [380.0, 390.0, 201.0, 148.0, 0.02, -0.01, 0.002, -0.001, 0.0, 0.0, 0.001, 0.001],
}


def synthesize(model="PINHOLE", frames=9, points=40):
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig = 1, 1, frames
    options.num_points3D, options.num_points2D_without_point3D = points, 0
    options.camera_width, options.camera_height = WIDTH, HEIGHT
    options.camera_model_id = getattr(pycolmap.CameraModelId, model)
    options.camera_params = MODELS[model]
    pycolmap.set_random_seed(0)
    return pycolmap.synthesize_dataset(options)


def write(folder, reconstruction, text=False, size=(WIDTH, HEIGHT), model="sparse/0"):
    """A capture folder with plain pictures."""
    (folder / model).mkdir(parents=True)
    if text:
        reconstruction.write_text(str(folder / model))
    else:
        reconstruction.write(str(folder / model))
    (folder / "images").mkdir(exist_ok=True)
    for index, name in enumerate(names(reconstruction)):
        Image.new("RGB", size, (index * 10, 100, 200)).save(folder / "images" / name)
    return folder


def names(reconstruction):
    return sorted(image.name for image in reconstruction.images.values())


def observations(reconstruction, image):
    """Known places in the world and where COLMAP says they are in the photograph."""
    seen = [point for point in image.points2D if point.has_point3D()]
    places = np.array([reconstruction.points3D[point.point3D_id].xyz for point in seen])
    return places, np.array([point.xy for point in seen])


@pytest.fixture
def capture(tmp_path):
    """A pinhole capture of nine photographs, and what COLMAP knows of it."""
    reconstruction = synthesize()
    return write(tmp_path, reconstruction), reconstruction


def refused(spec, message):
    with pytest.raises(DatasetError, match=message) as caught:
        spec.load(0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("normalise", [False, True])
def test_known_points_project_onto_their_known_pixels(tmp_path, text, normalise):
    reconstruction = synthesize()
    scene = Colmap(folder=write(tmp_path, reconstruction, text), normalise=normalise).load(0)
    by_name = {image.name: image for image in reconstruction.images.values()}
    assert (len(scene.train), len(scene.test)) == (7, 2)
    for view in scene.train + scene.test:
        places, pixels = observations(reconstruction, by_name[view.name])
        ours = scene.to_world.inverse(torch.from_numpy(places)).float()
        np.testing.assert_allclose(view.camera.project(ours)[0].numpy(), pixels, atol=PIXEL_TOLERANCE)


@pytest.mark.parametrize("model", [name for name in MODELS if "PINHOLE" not in name])
def test_known_points_project_onto_their_known_pixels_once_straightened(tmp_path, model):
    """Our pinhole's pixel, looked up in the map, is where COLMAP saw the point in the bent photograph."""
    reconstruction = synthesize(model)
    scene = Colmap(folder=write(tmp_path, reconstruction)).load(0)
    lens = Lens(model=model, params=tuple(MODELS[model]), width=WIDTH, height=HEIGHT)
    bend = lens.undistortion()
    image = next(image for image in reconstruction.images.values() if image.name == scene.train[0].name)
    places, seen = observations(reconstruction, image)
    pixels, _ = scene.train[0].camera.project(scene.to_world.inverse(torch.from_numpy(places)).float())
    index = pixels.numpy().astype(np.float32) - 0.5
    inside = (index > 1).all(1) & (index < np.array([WIDTH - 2, HEIGHT - 2])).all(1)
    # Bilinear between the map's four entries; OpenCV's own remap rounds places to 1/32 pixel.
    found = np.stack([_between(grid, index[inside]) for grid in (bend.columns, bend.rows)], axis=1) + 0.5
    assert inside.sum() > 20
    np.testing.assert_allclose(found, seen[inside], atol=BENT_TOLERANCE)


def _between(grid, places):
    column, row = np.floor(places.astype(np.float64)).astype(int).T
    x, y = places[:, 0] - column, places[:, 1] - row
    above = grid[row, column] * (1 - x) + grid[row, column + 1] * x
    below = grid[row + 1, column] * (1 - x) + grid[row + 1, column + 1] * x
    return above * (1 - y) + below * y


def test_pictures_are_straightened(tmp_path):
    """A dot painted where COLMAP sees a point is found where our pinhole sees it."""
    reconstruction = synthesize("OPENCV")
    folder = write(tmp_path, reconstruction)
    image = reconstruction.images[min(reconstruction.images)]
    places, seen = observations(reconstruction, image)
    # Nearest the corner, where the lens bends most, but inside.
    chosen = np.argmax(
        np.where(((seen > 20) & (seen < [WIDTH - 20, HEIGHT - 20])).all(1), np.abs(seen[:, 0] - 200), -1)
    )
    picture = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    column, row = np.floor(seen[chosen]).astype(int)
    cv2.rectangle(picture, (int(column) - 2, int(row) - 2), (int(column) + 2, int(row) + 2), (255, 255, 255), -1)
    Image.fromarray(picture).save(folder / "images" / image.name)
    scene = Colmap(folder=folder).load(0)
    view = next(view for view in scene.train + scene.test if view.name == image.name)
    weights = view.read().rgb[..., 0].astype(float)
    rows, columns = np.indices(weights.shape) + 0.5
    centre = np.array([(weights * columns).sum(), (weights * rows).sum()]) / weights.sum()
    expected, _ = view.camera.project(scene.to_world.inverse(torch.from_numpy(places[chosen])).float())
    # The dot's middle is that of a pixel, up to half a pixel from the point in either direction.
    np.testing.assert_allclose(centre, expected.numpy(), atol=0.6)


def test_normalising_centres_and_scales_and_comes_back(capture):
    folder, reconstruction = capture
    scene = Colmap(folder=folder).load(0)
    positions = torch.stack([view.camera.position for view in scene.train])
    assert scene.extent == pytest.approx(1, abs=PLACE_TOLERANCE)
    torch.testing.assert_close(positions.mean(0), torch.zeros(3), rtol=0, atol=PLACE_TOLERANCE)
    known = np.array([point.xyz for point in reconstruction.points3D.values()])
    back = scene.to_world(scene.points.xyz).numpy()
    np.testing.assert_allclose(np.sort(back, axis=0), np.sort(known, axis=0), atol=1e-4)


def test_every_eighth_photograph_by_name_is_held_out(capture):
    folder, reconstruction = capture
    ordered = names(reconstruction)
    assert [view.name for view in Colmap(folder=folder).load(0).test] == [ordered[0], ordered[8]]
    assert [view.name for view in Colmap(folder=folder, test_every=4).load(0).test] == ordered[::4]


def test_a_list_names_the_photographs_held_out(capture):
    folder, reconstruction = capture
    chosen = names(reconstruction)[3]
    (folder / "test.txt").write_text(f"{chosen}\n")
    assert [view.name for view in Colmap(folder=folder, test_list=folder / "test.txt").load(0).test] == [chosen]
    (folder / "test.txt").write_text("other.png\n")
    refused(Colmap(folder=folder, test_list=folder / "test.txt"), r"names other\.png, which is not among")


@pytest.mark.parametrize("step", [0, 1])
def test_a_split_without_training_or_test_views_is_refused(capture, step):
    refused(Colmap(folder=capture[0], test_every=step), r"views to train on .* set dataset\.test_every")


def test_smaller_pictures_come_from_their_folder_with_their_rounded_size(capture):
    folder, reconstruction = capture
    (folder / "images_8").mkdir()
    for name in names(reconstruction):
        # 300 / 8 = 37.5, rounded up; another ending than the one COLMAP knows.
        Image.new("RGB", (50, 38)).save(folder / "images_8" / f"{name.removesuffix('.png')}.jpg")
    camera = Colmap(folder=folder, downscale=8).load(0).train[0].camera
    assert (camera.width, camera.height) == (50, 38)
    assert camera.focal == pytest.approx((380 / 8, 390 * 38 / 300))
    assert camera.centre == pytest.approx((201 / 8, 148 * 38 / 300))


def test_pictures_are_averaged_down_where_there_is_no_smaller_folder(capture):
    view = Colmap(folder=capture[0], downscale=8).load(0).train[0]
    assert view.read().rgb.shape == (38, 50, 3)
    assert (view.camera.width, view.camera.height) == (50, 38)


@pytest.mark.parametrize("place", ["sparse", "colmap/sparse/0", "colmap/sparse", "sparse/3"])
def test_the_model_may_lie_in_any_of_the_usual_folders(tmp_path, place):
    assert len(Colmap(folder=write(tmp_path, synthesize(), model=place)).load(0).train) == 7


def test_the_model_with_most_photographs_is_chosen_and_named(capture, caplog):
    folder, _ = capture
    small = synthesize(frames=3)
    write(folder, small, model="sparse/1")
    write(folder, synthesize(frames=4), model="sparse/2", text=True)
    with caplog.at_level(logging.WARNING):
        scene = Colmap(folder=folder).load(0)
    assert len(scene.train) == 7
    assert "using 0 with 9 images; others: 1 (3), 2 (4)" in caplog.text
    assert len(Colmap(folder=folder, sparse="sparse/1", test_every=2).load(0).train) == 1


def test_photographs_without_pose_are_counted(capture, caplog):
    folder, _ = capture
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "images" / "zebra.jpg")
    with caplog.at_level(logging.WARNING):
        Colmap(folder=folder).load(0)
    assert "1 of 10 photographs have no pose and are not used (first: zebra.jpg)" in caplog.text


def test_missing_photographs_are_an_error_unless_skipped(capture):
    folder, reconstruction = capture
    for name in names(reconstruction)[1:3]:
        (folder / "images" / name).unlink()
    refused(Colmap(folder=folder), r"names 9 photographs; 2 are not in .*skip_missing=true")
    assert len(Colmap(folder=folder, skip_missing=True).load(0).train) == 6


def test_masks_hide_pixels_or_become_opacity(capture):
    folder, reconstruction = capture
    (folder / "masks").mkdir()
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[:, 100:] = 255
    for index, name in enumerate(names(reconstruction)):
        # Both customs of naming.
        Image.fromarray(mask).save(folder / "masks" / (f"{name}.png" if index % 2 else name))
    ignored = Colmap(folder=folder).load(0).train[1].read()
    assert np.array_equal(ignored.mask, mask > 0)
    assert ignored.alpha is None
    cut = Colmap(folder=folder, masks="alpha", background="white").load(0)
    photograph = cut.train[1].read()
    assert np.array_equal(photograph.alpha, mask)
    assert photograph.mask is None
    assert not photograph.rgb[:, :100].any()
    assert cut.background == (1, 1, 1)
    assert Colmap(folder=folder, masks="none").load(0).train[1].read().mask is None
    (folder / "masks" / names(reconstruction)[2]).unlink()
    refused(Colmap(folder=folder), "no mask for")


def test_masks_that_are_asked_for_must_be_there(capture):
    refused(Colmap(folder=capture[0], masks="alpha"), "masks: no such folder")


def test_a_photograph_turned_by_exif_keeps_the_pixels_that_fit_the_camera(capture):
    folder, reconstruction = capture
    ordered = names(reconstruction)
    turned = Image.Exif()
    turned[0x0112] = 6
    # Stored as the camera has it: EXIF is ignored.
    fitting = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    fitting[:100] = 255
    # Stored on its side: EXIF is obeyed.
    for name, pixels in ((ordered[1], fitting), (ordered[2], np.rot90(fitting))):
        (folder / "images" / name).unlink()
        Image.fromarray(np.ascontiguousarray(pixels)).save(
            folder / "images" / name.replace(".png", ".jpg"), exif=turned, quality=95
        )
    first, second = (view.read().rgb for view in Colmap(folder=folder).load(0).train[:2])
    # JPEG leaves ringing of a few levels.
    np.testing.assert_allclose(first.astype(int), fitting, atol=20)
    np.testing.assert_allclose(second.astype(int), fitting, atol=20)


def test_pictures_of_another_shape_than_their_cameras_are_refused(capture):
    folder, reconstruction = capture
    Image.new("RGB", (300, 300)).save(folder / "images" / names(reconstruction)[4])
    refused(Colmap(folder=folder), r"is 300x300, but .* says 400x300 \(camera 1\)")
    Image.new("RGB", (200, 150)).save(folder / "images" / names(reconstruction)[4])
    refused(Colmap(folder=folder), r"200x150 .* same camera 1 is 400x300")


@pytest.mark.parametrize("part", ["cameras", "images", "points3D", "rigs", "frames"])
@pytest.mark.parametrize("kept", [0, 4, 0.5, -3, "garbage", "longer"])
def test_binary_files_that_are_cut_or_garbled_are_named(capture, part, kept):
    folder, _ = capture
    path = folder / "sparse" / "0" / f"{part}.bin"
    content = path.read_bytes()
    if kept == "garbage":
        path.write_bytes(b"\xff" * len(content))
    elif kept == "longer":
        path.write_bytes(content + b"\0")
    else:
        path.write_bytes(content[: int(len(content) * kept) if isinstance(kept, float) else kept])
    refused(Colmap(folder=folder), rf"{part}\.bin")


def test_text_files_that_are_garbled_are_named(tmp_path):
    folder = write(tmp_path, synthesize(), text=True)
    path = folder / "sparse" / "0" / "cameras.txt"
    path.write_text(path.read_text().replace("PINHOLE", "PEEPHOLE"))
    refused(Colmap(folder=folder), r"cameras\.txt: camera 1 has the unknown model 'PEEPHOLE'")
    path.write_text(path.read_text().replace("PEEPHOLE 400 300 380", "PINHOLE 400 300 much"))
    refused(Colmap(folder=folder), r"sparse/0: is corrupt")


def test_an_unknown_camera_number_is_named(capture):
    folder, _ = capture
    path = folder / "sparse" / "0" / "cameras.bin"
    content = bytearray(path.read_bytes())
    content[12:16] = (77).to_bytes(4, "little")
    path.write_bytes(bytes(content))
    refused(Colmap(folder=folder), r"camera 1 has the unknown model number 77 \(known: SIMPLE_PINHOLE")


def test_missing_folders_and_files_are_named(capture):
    folder, _ = capture
    refused(Colmap(folder=folder / "nowhere"), "nowhere: no such folder")
    refused(Colmap(folder=folder, images="photos"), r"photos: no such folder; set dataset\.images")
    (folder / "sparse" / "0" / "points3D.bin").unlink()
    refused(Colmap(folder=folder), r"neither points3D\.bin nor points3D\.txt")
    shutil.rmtree(folder / "sparse" / "0")
    refused(Colmap(folder=folder), "sparse: holds no cameras, images and points3D")
    shutil.rmtree(folder / "sparse")
    refused(Colmap(folder=folder), "no such folder; COLMAP's sparse model is expected there")


@pytest.mark.data
def test_the_foxs_points_have_the_colours_of_the_photographs(data):
    scene = Colmap(folder=data / "fox_colmap", downscale=4).load(0)
    reconstruction = pycolmap.Reconstruction(str(data / "fox_colmap" / "sparse" / "0"))
    image = next(image for image in reconstruction.images.values() if image.name == scene.train[3].name)
    places, seen = observations(reconstruction, image)
    pixels, _ = scene.train[3].camera.project(scene.to_world.inverse(torch.from_numpy(places)).float())
    # COLMAP's own reprojection error is below a pixel of the full size, in the median.
    assert np.median(np.linalg.norm(pixels.numpy() * 4 - seen, axis=1)) < 1
    known = {tuple(p.xyz): p.color for p in reconstruction.points3D.values()}
    colours = np.array([known[tuple(place)] for place in places]).astype(float)
    column, row = pixels.floor().long().T.numpy()
    rgb = scene.train[3].read().rgb[row, column]
    assert np.median(np.abs(rgb - colours)) < 12


def test_a_distortion_that_cannot_be_undone_is_refused(tmp_path):
    reconstruction = synthesize("SIMPLE_RADIAL")
    camera = next(iter(reconstruction.cameras.values()))
    camera.params = [*camera.params[:-1], 1e9]
    refused(Colmap(folder=write(tmp_path, reconstruction)), r"sparse/0: camera 1: its distortion \(k=1e\+09\)")


# ---- points of few views


def test_a_thinned_capture_keeps_the_points_that_two_of_its_views_have_in_their_tracks(capture):
    from nfc_gs.captures.thinning import Thinning

    folder, reconstruction = capture
    # The points of a synthetic capture are in all views: each is left in two of them only, the first ones always in all.
    generator = np.random.default_rng(0)
    for point in list(reconstruction.points3D.values())[4:]:
        elements = [(e.image_id, e.point2D_idx) for e in point.track.elements]
        for number in generator.permutation(len(elements))[2:]:
            reconstruction.delete_observation(*elements[number])
    reconstruction.write(str(folder / "sparse/0"))
    scene = Colmap(folder=folder, normalise=False).load(0)
    thinned = Thinning(count=3)(scene, 0)
    kept = {view.name for view in thinned.train}
    expected = {
        tuple(np.float32(point.xyz))
        for point in reconstruction.points3D.values()
        if len({reconstruction.images[e.image_id].name for e in point.track.elements} & kept) >= 2
    }
    assert 0 < len(expected) < len(scene.points.xyz)
    assert {tuple(xyz) for xyz in thinned.points.xyz.numpy()} == expected


@pytest.mark.data
def test_six_views_of_fox_leave_a_part_of_its_points(data):
    from nfc_gs.captures.thinning import Thinning

    scene = Colmap(folder=data / "fox_colmap", downscale=8).load(0)
    thinned = Thinning(count=6)(scene, 0)
    assert len(thinned.train) == 6 and len(thinned.test) == len(scene.test) == 7
    # Counted from points3D.bin by hand: whoever has two of these six pictures in the track.
    names = {view.name for view in thinned.train}
    model = pycolmap.Reconstruction(str(data / "fox_colmap/sparse/0"))
    seen = [{model.images[e.image_id].name for e in p.track.elements} & names for p in model.points3D.values()]
    assert len(thinned.points.xyz) == sum(len(views) >= 2 for views in seen)
