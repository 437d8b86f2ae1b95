"""The tool that compares errors at training times and between them."""

import json
import math

import pytest


def write(folder, views):
    record = {"per_view": [{"name": name, "psnr": psnr} for name, psnr in views]}
    (folder / "metrics.json").write_text(json.dumps(record))


def test_the_ratio_is_that_of_mean_squared_errors(interpolation, tmp_path, monkeypatch, capsys):
    # Mean squared errors .01 and .03 at training times, .04 half way: 0.02 against 0.04.
    views = [
        ("test_at_000", 20.0),
        ("test_at_001", -10 * math.log10(0.03)),
        ("test_between_000", -10 * math.log10(0.04)),
    ]
    write(tmp_path, views)
    assert interpolation.errors(tmp_path / "metrics.json") == pytest.approx((0.02, 0.04))
    monkeypatch.setattr("sys.argv", ["interpolation", str(tmp_path)])
    interpolation.main()
    assert "16.99 dB at training times, 13.98 dB half way, squared error x 2.00" in capsys.readouterr().out


@pytest.mark.parametrize("text", [None, "[", "{}", '{"per_view": [{"name": "test_at_000", "psnr": 20.0}]}'])
def test_runs_of_other_scenes_are_refused_in_one_line(interpolation, tmp_path, monkeypatch, capsys, text):
    if text is not None:
        (tmp_path / "metrics.json").write_text(text)
    monkeypatch.setattr("sys.argv", ["interpolation", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        interpolation.main()
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
