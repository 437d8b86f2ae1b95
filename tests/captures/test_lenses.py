import cv2
import numpy as np
import pytest

from nfc_gs.captures.lenses import Lens

# Maps are float32 pixels of up to 200: half a unit in the last place is below 1e-5.
MAP_TOLERANCE = 2e-5
# An 8-bit ramp of 2 levels a pixel, rounded once when written and once when interpolated.
RAMP_TOLERANCE = 1.01
WIDTH, HEIGHT, FOCAL = 160, 120, 150.0
CENTRE = (81.3, 58.9)
RATIONAL = (0.12, -0.05, 0.003, -0.002, 0.01, 0.02, -0.01, 0.004)
FISHEYE = (0.05, -0.02, 0.01, -0.003)


def lens(model: str, *params: float) -> Lens:
    return Lens(model=model, params=params, width=WIDTH, height=HEIGHT)


def rays() -> np.ndarray:
    """Through the pixels' centres, in the order of the rows, computed the long way."""
    return np.array(
        [
            [(c + 0.5 - CENTRE[0]) / FOCAL, (r + 0.5 - CENTRE[1]) / FOCAL, 1.0]
            for r in range(HEIGHT)
            for c in range(WIDTH)
        ]
    )


MATRIX = np.array([[FOCAL, 0, CENTRE[0]], [0, FOCAL, CENTRE[1]], [0, 0, 1]])
ZERO = np.zeros(3)


@pytest.mark.parametrize(
    ("model", "params", "distortion"),
    [
        ("SIMPLE_RADIAL", (FOCAL, *CENTRE, -0.1), (-0.1, 0, 0, 0)),
        ("RADIAL", (FOCAL, *CENTRE, -0.1, 0.05), (-0.1, 0.05, 0, 0)),
        ("OPENCV", (FOCAL, FOCAL, *CENTRE, -0.1, 0.05, 0.003, -0.002), (-0.1, 0.05, 0.003, -0.002)),
        ("FULL_OPENCV", (FOCAL, FOCAL, *CENTRE, *RATIONAL), RATIONAL),
    ],
)
def test_perspective_lenses_bend_as_opencv_says(model, params, distortion):
    found = lens(model, *params).undistortion()
    expected = cv2.projectPoints(rays(), ZERO, ZERO, MATRIX, np.array(distortion, dtype=float))[0].reshape(-1, 2)
    valid = found.valid.ravel()
    inside = (expected >= 0).all(1) & (expected <= [WIDTH, HEIGHT]).all(1)

    assert (valid == inside).mean() > 0.999
    np.testing.assert_allclose(found.columns.ravel()[valid] + 0.5, expected[valid, 0], atol=MAP_TOLERANCE)
    np.testing.assert_allclose(found.rows.ravel()[valid] + 0.5, expected[valid, 1], atol=MAP_TOLERANCE)


@pytest.mark.parametrize(
    ("model", "params", "distortion"),
    [
        ("SIMPLE_RADIAL_FISHEYE", (FOCAL, *CENTRE, 0.05), (0.05, 0, 0, 0)),
        ("RADIAL_FISHEYE", (FOCAL, *CENTRE, 0.05, -0.02), (0.05, -0.02, 0, 0)),
        ("OPENCV_FISHEYE", (FOCAL, FOCAL, *CENTRE, *FISHEYE), FISHEYE),
    ],
)
def test_fisheye_lenses_bend_as_opencv_says(model, params, distortion):
    found = lens(model, *params).undistortion()
    expected = cv2.fisheye.projectPoints(rays()[:, None], ZERO, ZERO, MATRIX, np.array(distortion, dtype=float))[0]
    expected = expected.reshape(-1, 2)

    assert found.valid.all()
    np.testing.assert_allclose(found.columns.ravel() + 0.5, expected[:, 0], atol=MAP_TOLERANCE)
    np.testing.assert_allclose(found.rows.ravel() + 0.5, expected[:, 1], atol=MAP_TOLERANCE)


def test_a_straightened_ramp_holds_each_pixels_source():
    bent = lens("SIMPLE_RADIAL", FOCAL, *CENTRE, -0.2).undistortion()
    ramp = np.repeat((np.arange(WIDTH) * 1.5).astype(np.uint8)[None], HEIGHT, axis=0)
    np.testing.assert_allclose(bent.straighten(ramp), bent.columns * 1.5, atol=RAMP_TOLERANCE)


def test_pixels_beyond_a_cushion_shaped_photograph_are_not_valid():
    valid = lens("SIMPLE_RADIAL", FOCAL, *CENTRE, 0.5).undistortion().valid
    assert not valid[0, 0]
    assert valid[HEIGHT // 2, WIDTH // 2]


def test_a_polynomial_that_turns_back_shows_nothing_twice():
    # r (1 - 2 r^2) grows up to r = sqrt(1/6) only; the picture's corners lie at r = 0.66.
    valid = lens("SIMPLE_RADIAL", FOCAL, *CENTRE, -2.0).undistortion().valid
    radius = np.hypot(*(rays()[:, :2].T)).reshape(HEIGHT, WIDTH)
    step = 2 / FOCAL
    assert not valid[radius > np.sqrt(1 / 6) + step].any()
    assert valid[radius < np.sqrt(1 / 6) - step].all()


@pytest.mark.parametrize("model", ["SIMPLE_PINHOLE", "SIMPLE_RADIAL"])
def test_a_lens_without_distortion_leaves_pictures_alone(model):
    params = (FOCAL, *CENTRE) if model == "SIMPLE_PINHOLE" else (FOCAL, *CENTRE, 0.0)
    assert lens(model, *params).undistortion() is None


def test_unknown_models_and_wrong_counts_are_refused():
    with pytest.raises(ValueError, match="unknown camera model 'FISH'"):
        lens("FISH", 1.0)
    with pytest.raises(ValueError, match="takes fx, fy, cx, cy"):
        lens("PINHOLE", 1.0, 1.0, 1.0)


def test_the_straight_share_is_that_of_the_circle_up_to_where_a_polynomial_turns_back():
    # As above: a circle of r = sqrt(1/6), 61.2 pixels; nearly all of it lies within the 120 rows, which cut two caps off.
    radius, half = FOCAL * np.sqrt(1 / 6), HEIGHT / 2
    cap = radius**2 * np.arccos(half / radius) - half * np.sqrt(radius**2 - half**2)
    share = (np.pi * radius**2 - 2 * cap) / (WIDTH * HEIGHT)
    # A border of one pixel of the coarse map: 2 pi 61 / (120 * 64).
    assert lens("SIMPLE_RADIAL", FOCAL, *CENTRE, -2.0).straight_share == pytest.approx(share, abs=0.05)
    assert lens("SIMPLE_RADIAL", FOCAL, *CENTRE, -0.1).straight_share == 1
    assert lens("PINHOLE", FOCAL, FOCAL, *CENTRE).straight_share == 1
    assert lens("SIMPLE_RADIAL", FOCAL, *CENTRE, 1e300).straight_share == 0


def test_what_bends_a_picture_is_named_without_what_does_not():
    assert lens("OPENCV", FOCAL, FOCAL, *CENTRE, -0.1, 0.0, 0.003, 0.0).distortion == "k1=-0.1, p1=0.003"
    assert lens("PINHOLE", FOCAL, FOCAL, *CENTRE).distortion == ""
