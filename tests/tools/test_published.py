"""Runs beside published numbers: what stands in a table, what is left out, and that means are of all their scenes."""

import json

import pytest
import yaml

# Means as papers and READMEs state them, which the scenes' numbers were not made from.
STATED = {
    ("mipnerf360", "3DGS", "psnr", "mean of 9"): 27.21,  # Kerbl et al. 2023, table 1
    ("mipnerf360", "3DGS", "ssim", "mean of 9"): 0.815,
    ("mipnerf360", "3DGS", "lpips_vgg", "mean of 9"): 0.214,
    ("mipnerf360", "3DGS, by gsplat's authors", "psnr", "mean of 7"): 28.95,  # gsplat's documentation, inria-30k
    ("mipnerf360", "3DGS, by gsplat's authors", "ssim", "mean of 7"): 0.870,
    ("mipnerf360", "3DGS, by gsplat's authors", "lpips_alex", "mean of 7"): 0.138,
    ("mipnerf360", "gsplat", "psnr", "mean of 7"): 28.95,
    ("mipnerf360", "gsplat", "lpips_alex", "mean of 7"): 0.135,
    ("nerf_synthetic", "3DGS", "psnr", "mean of 8"): 33.31,
    ("dnerf", "4DGaussians, by Grid4D", "psnr", "mean of 7"): 35.41,  # Grid4D's figure
    ("dnerf", "Deformable-3D-GS", "psnr", "mean of 7"): 41.14,  # its README
    ("dnerf", "SC-GS", "psnr", "mean of 7"): 43.31,  # its figure
    ("dnerf", "Grid4D", "psnr", "mean of 7"): 42.00,
}
# Numbers of two or three digits, averaged: half a unit of the last digit, and as much for the stated mean's own rounding.
ROUNDING = {"psnr": 0.0101, "ssim": 0.00101, "lpips_vgg": 0.00101, "lpips_alex": 0.00101}


def settings(scene="garden", downscale=4, seed=0, name=None, **changes):
    dataset = {
        "kind": "colmap", "folder": f"/data/mipnerf360/{scene}", "images": "images", "downscale": downscale,
        "test_every": 8, "test_list": None, "masks": "auto",
    }  # fmt: skip
    return {
        "name": name or f"{scene}_clean_3dgs_30000_s{seed}", "seed": seed, "steps": 30_000, "dataset": dataset,
        "views": {"count": 0, "choice": "order"}, "degradation": {"blur": 0.0}, "strategy": {"kind": "classic"},
    } | changes  # fmt: skip


def metrics(psnr=27.0, **changes):
    return {
        "psnr": psnr, "ssim": 0.86, "lpips_alex": 0.08, "steps": 30_000, "checkpoint": "last", "split": "test",
        "num_gaussians": 1000, "train_seconds": 60.0, "commit": "abc", "device": "cpu", "versions": {"torch": "2"},
        "background": [0, 0, 0],
    } | changes  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def run(its_settings, its_metrics):
        folder = tmp_path / "runs" / f"{its_settings['name']}_{len(list(tmp_path.rglob('metrics.json')))}"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(its_settings))
        (folder / "metrics.json").write_text(json.dumps(its_metrics))
        return tmp_path / "runs"

    return run


def cells(text, heading, row):
    """A row of the part of a table under a heading, by column."""
    lines = text[text.index(heading) :].splitlines()
    head = [cell.strip() for cell in lines[2].strip("|").split("|")]
    found = next(line for line in lines if line.startswith(f"| {row} |"))
    return dict(zip(head, [cell.strip() for cell in found.strip("|").split("|")], strict=True))


@pytest.mark.parametrize("key", STATED, ids=lambda key: " ".join(key))
def test_the_scenes_numbers_have_the_mean_that_was_published(published, key):
    table_name, name, metric, mean = key
    table = published.read_tables()[table_name]
    method = next(method for method in table.methods if method.name == name)
    ours = published.mean(method.scores[metric], table.means[mean])
    assert ours == pytest.approx(STATED[key], abs=ROUNDING[metric])


def test_every_published_method_says_where_it_was_read_and_what_pictures_it_saw(published):
    methods = [method for table in published.read_tables().values() for method in table.methods]
    assert len(methods) > 20
    assert all(len(method.source) > 10 and method.pictures for method in methods)


def test_nothing_of_ours_is_made_up_where_nothing_was_run(published, capsys):
    assert published.main([]) == 0
    text = capsys.readouterr().out
    for part in text.split("## ")[1:]:
        assert "(ours)" not in part
        assert set(cells(part, "PSNR", "ours").values()) == {"ours", "not run", "–"}


def test_a_run_stands_in_its_cell_and_other_scenes_say_not_run(published, write, capsys):
    runs = write(settings(), metrics(psnr=27.126))
    assert published.main([str(runs), "--table", "mipnerf360"]) == 0
    row = cells(capsys.readouterr().out, "PSNR", "**3dgs** (ours)")
    assert row["garden"] == "27.13"
    assert row["bicycle"] == "not run"
    assert row["mean of 7"] == row["mean of 9"] == "–"


def test_the_mean_of_seven_scenes_is_never_that_of_nine(published, write, capsys):
    indoors = {"room", "counter", "kitchen", "bonsai"}
    for number, scene in enumerate(["bicycle", "garden", "stump", *sorted(indoors)]):
        runs = write(settings(scene, downscale=2 if scene in indoors else 4), metrics(psnr=20.0 + number))
    published.main([str(runs), "--table", "mipnerf360"])
    row = cells(capsys.readouterr().out, "PSNR", "**3dgs** (ours)")
    assert row["mean of 7"] == "23.00"
    assert row["mean of 9"] == "–"


def test_seeds_are_averaged_with_their_sample_standard_deviation(published, write, capsys):
    write(settings(seed=0), metrics(psnr=26.0))
    runs = write(settings(seed=1), metrics(psnr=28.0))
    published.main([str(runs), "--table", "mipnerf360"])
    # The deviation of 26 and 28 about 27, with one degree of freedom, is the root of two.
    assert cells(capsys.readouterr().out, "PSNR", "**3dgs** (ours)")["garden"] == "27.00 ± 1.41"


def test_lpips_is_named_by_its_network_and_ours_is_not_put_beside_vgg(published, write, capsys):
    runs = write(settings(), metrics())
    published.main([str(runs), "--table", "mipnerf360"])
    text = capsys.readouterr().out
    assert cells(text, "LPIPS by VGG", "**3dgs** (ours)")["garden"] == "not computed"
    assert cells(text, "LPIPS by AlexNet", "**3dgs** (ours)")["garden"] == "0.080"


@pytest.mark.parametrize(
    ("changes", "its_metrics", "reason"),
    [
        (dict(downscale=8), {}, "dataset.downscale is 8, the table's is 4"),
        (dict(steps=7000, name="garden_s0"), dict(steps=7000), "steps is 7000, the table's is 30000"),
        (dict(views={"count": 12}), {}, "views.count is 12"),
        (dict(degradation={"blur": 2.0}), {}, "degradation.blur"),
        ({}, dict(checkpoint="best on these views"), "best on the held-out views"),
        ({}, dict(steps=15_000), "after 15000 of 30000 steps"),
        ({}, dict(split="train"), "on its train views"),
        (dict(dataset={"kind": "colmap", "folder": "/data/garden"}), {}, "do not say dataset.downscale"),
    ],
)
def test_a_run_of_other_pictures_or_steps_is_left_out_with_the_reason(
    published, write, capsys, changes, its_metrics, reason
):
    runs = write(settings(**changes), metrics(**its_metrics))
    published.main([str(runs), "--table", "mipnerf360"])
    text = capsys.readouterr().out
    assert "(ours)" not in text
    assert reason in next(line for line in text.splitlines() if line.startswith("- Left out"))


def test_dnerfs_lego_stands_in_its_table_as_judged_by_its_validation_pictures(published, write, capsys):
    dataset = {
        "kind": "dynamic.datasets.dnerf", "folder": "/data/dnerf/lego", "downscale": 1, "test_split": "val", "test_stride": 1,
        "train_stride": 1, "test_every": 0, "shuffle_times": False,
    }  # fmt: skip
    runs = write(settings("lego", dataset=dataset), metrics(psnr=33.25, split="val"))
    published.main([str(runs), "--table", "dnerf"])
    assert cells(capsys.readouterr().out, "PSNR", "**3dgs** (ours)")["lego"] == "33.25"


def test_runs_of_one_name_that_differ_in_more_than_their_seed_are_refused(published, write, capsys):
    write(settings(seed=0), metrics())
    runs = write(settings(seed=1, strategy={"kind": "mcmc"}), metrics())
    assert published.main([str(runs)]) == 2
    assert "differ in strategy.kind (classic and mcmc)" in capsys.readouterr().err


def test_two_runs_from_one_seed_are_refused(published, write, capsys):
    write(settings(), metrics())
    runs = write(settings(), metrics())
    assert published.main([str(runs)]) == 2
    assert "from one seed" in capsys.readouterr().err


def test_a_mistake_is_one_line(published, tmp_path, capsys):
    for arguments in ([str(tmp_path)], ["--table", "mip360"], ["--numbers", str(tmp_path / "none.yaml")]):
        assert published.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("published: ") and error.count("\n") == 1


def test_runs_of_other_scenes_are_told_of(published, write, capsys):
    runs = write(settings(dataset={"kind": "toy"}), metrics())
    assert published.main([str(runs), "--table", "dnerf"]) == 0
    assert "1 runs are of no table's scenes" in capsys.readouterr().err


def test_the_table_is_written_where_it_is_asked_for(published, tmp_path):
    assert published.main(["--output", str(tmp_path / "new" / "table.md")]) == 0
    assert (tmp_path / "new" / "table.md").read_text().startswith("# Beside published numbers")
