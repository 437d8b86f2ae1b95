"""The tool that compares how long schedules take to a quality."""

import json

import pytest
import yaml

CURVES = {"plain": [(100, 10, 20.0), (200, 20, 24.0)], "lean": [(50, 5, 23.0), (80, 8, 24.0), (100, 11, 24.5)]}


def write(folder, schedule, curve, seed=0):
    run = folder / f"fox_{schedule}_s{seed}"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump({"name": run.name, "seed": seed}))
    metrics = {"psnr": 1, "steps": 1, "commit": "abc", "uncommitted_changes": False, "device": "cpu"}
    (run / "metrics.json").write_text(json.dumps(metrics))
    if curve is not None:
        lines = [f"{step},{seconds},{psnr},7" for step, seconds, psnr in curve]
        (run / "clock.csv").write_text("\n".join(["step,cpu_seconds,psnr,num_gaussians", *lines]))
    return str(run)


def test_the_time_is_that_of_the_first_look_not_below_the_slow_ones_end(time_to_quality, tmp_path, monkeypatch):
    runs = [write(tmp_path, *item) for item in CURVES.items()] + [write(tmp_path, "worse", [(9, 9, 23.9)])]
    table = tmp_path / "table.md"
    table.write_text(f"# By hand\n\n{time_to_quality.MARK}\nold")
    monkeypatch.setattr("sys.argv", ["time_to_quality", *runs, "--output", str(table)])
    time_to_quality.main()
    text = table.read_text()
    assert text.startswith("# By hand\n\n") and "old" not in text
    assert "| fox | 0 | plain | 200 | 24.00 | +0.00 | 20 | 20 | 1 |" in text
    assert "| fox | 0 | lean | 100 | 24.50 | +0.50 | 11 | 8 | 0.40 |" in text
    assert "| fox | 0 | worse | 9 | 23.90 | -0.10 | 9 | not reached | - |" in text
    assert "- fox, worse: -0.10 dB at the end, not reached by every seed" in text


@pytest.mark.parametrize(
    ("schedule", "curve", "complaint"),
    [("plain", None, "has no clock.csv"), ("lean", [(1, 1, 9)], "no run fox_plain_s0")],
)
def test_what_lacks_is_named(schedule, curve, complaint, time_to_quality, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["time_to_quality", write(tmp_path, schedule, curve)])
    with pytest.raises(SystemExit, match=complaint):
        time_to_quality.main()
