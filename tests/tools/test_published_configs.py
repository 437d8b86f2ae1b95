"""Published settings: every file loads, alone and under every method, and says what the papers' own programs say."""

from collections import defaultdict

import pytest

from nfc_gs.config import dump, load, read
from nfc_gs.studies.matrix import plan, read_matrix
from nfc_gs.training.experiment import Experiment
from tests.conftest import REPOSITORY

PUBLISHED = REPOSITORY / "configs" / "published"
SCENES = sorted((PUBLISHED / "scenes").rglob("*.yaml"))
CAPS = sorted((PUBLISHED / "mcmc").rglob("*.yaml"))
SWEEPS = sorted((PUBLISHED / "sweeps").glob("*.yaml"))
METHODS = sorted((REPOSITORY / "configs" / "methods").glob("*.yaml"))
DNERF = sorted((REPOSITORY / "configs" / "dynamic" / "scenes").glob("*.yaml"))
FIELDS = sorted((REPOSITORY / "configs" / "dynamic" / "published").glob("*.yaml"))
# The lists of full_eval.py of 3DGS, and the folders of the data sets' archives.
OUTDOORS = {"bicycle", "flowers", "garden", "stump", "treehill"}
INDOORS = {"room", "counter", "kitchen", "bonsai"}
GROUPS = {
    "mipnerf360": OUTDOORS | INDOORS,
    "tanks_and_temples": {"train", "truck"},
    "deep_blending": {"drjohnson", "playroom"},
    "nerf_synthetic": {"chair", "drums", "ficus", "hotdog", "lego", "materials", "mic", "ship"},
}
ARCHIVES = {
    "mipnerf360": "mipnerf360",
    "tanks_and_temples": "tandt",
    "deep_blending": "db",
    "nerf_synthetic": "nerf_synthetic",
}


@pytest.fixture(autouse=True)
def data(monkeypatch):
    monkeypatch.setenv("NFC_GS_DATA", "/data")


def name(path):
    return f"{path.parent.name}/{path.stem}"


def test_every_scene_of_the_papers_has_its_file_and_no_other():
    found = defaultdict(set)
    for path in SCENES:
        found[path.parent.name].add(path.stem)
    assert found == GROUPS


def test_all_eight_scenes_of_dnerf_are_there():
    eight = {"bouncingballs", "hellwarrior", "hook", "jumpingjacks", "lego", "mutant", "standup", "trex"}
    assert {path.stem for path in DNERF} == eight


@pytest.mark.parametrize("scene", SCENES, ids=name)
def test_a_scene_is_trained_by_3dgs_own_settings(scene):
    experiment = load(Experiment, [scene])
    dataset, strategy, optimizer = experiment.dataset, experiment.strategy, experiment.optimizer
    assert str(dataset.folder) == f"/data/{ARCHIVES[scene.parent.name]}/{scene.stem}"
    assert experiment.name == f"{scene.parent.name}_{scene.stem}"
    # Kerbl et al. 2023 and arguments/__init__.py of their program.
    assert experiment.steps == 30_000
    assert (strategy.start, strategy.stop, strategy.every, strategy.reset_every) == (500, 15_000, 100, 3000)
    assert (strategy.grow_gradient, strategy.grow_scale, strategy.prune_opacity) == (2e-4, 0.01, 0.005)
    assert strategy.cap_max is None
    assert (optimizer.means, optimizer.means * optimizer.means_final) == (1.6e-4, pytest.approx(1.6e-6))
    assert (optimizer.colour_logits, optimizer.harmonics) == (2.5e-3, 2.5e-3 / 20)
    assert (optimizer.opacity_logits, optimizer.log_scales, optimizer.quats) == (5e-2, 5e-3, 1e-3)
    assert (experiment.losses["l1"].weight, experiment.losses["dssim"].weight) == (0.8, 0.2)
    assert (experiment.schedule.sh_degree, experiment.schedule.sh_every) == (3, 1000)
    if scene.parent.name == "nerf_synthetic":
        assert (dataset.background, dataset.test_split, dataset.test_stride) == ("white", "test", 1)
        assert (experiment.initial.random, dataset.half_size, dataset.downscale) == (100_000, 1.3, 1)
    else:
        assert (dataset.test_every, dataset.test_list, dataset.background) == (8, None, "black")
        assert dataset.downscale == (4 if scene.stem in OUTDOORS else 2 if scene.stem in INDOORS else 1)


@pytest.mark.parametrize("method", METHODS, ids=lambda path: path.stem)
@pytest.mark.parametrize("scene", SCENES, ids=name)
def test_every_published_scene_loads_under_every_method(scene, method):
    assert load(Experiment, [scene, method]).steps == 30_000


@pytest.mark.parametrize("cap", CAPS, ids=name)
def test_3dgs_mcmc_lies_over_its_scene(cap):
    experiment = load(Experiment, [PUBLISHED / "scenes" / cap.parent.name / cap.name, cap])
    strategy = experiment.strategy
    # Kheradmand et al. 2024 and arguments/__init__.py of their program: densification ends before step 25,000 of 30,000.
    assert strategy.stop * experiment.steps == pytest.approx(25_000)
    assert (strategy.noise_rate, strategy.min_opacity, strategy.growth) == (5e5, 0.005, 0.05)
    assert (experiment.losses["opacity"].weight, experiment.losses["scale"].weight) == (0.01, 0.01)
    assert (experiment.initial.opacity, experiment.initial.scale) == (0.5, 0.1)
    assert strategy.cap_max == read([cap])["strategy"]["cap_max"] >= 150_000


def test_3dgs_mcmc_has_a_number_of_gaussians_for_all_of_mipnerf360_and_nerf_synthetic():
    assert {name(path) for path in CAPS} == {
        f"{group}/{scene}" for group in ("mipnerf360", "nerf_synthetic") for scene in GROUPS[group]
    }


@pytest.mark.parametrize("field", FIELDS, ids=lambda path: path.stem)
@pytest.mark.parametrize("scene", DNERF, ids=lambda path: path.stem)
def test_dnerf_loads_with_every_published_field(scene, field):
    experiment = load(Experiment, [scene, field])
    assert str(experiment.dataset.folder) == f"/data/dnerf/{scene.stem}"
    assert experiment.dataset.test_split == ("val" if scene.stem == "lego" else "test")
    assert experiment.steps == {"hexplane": 23_000, "mlp": 40_000}[field.stem]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_runs_its_whole_data_set_at_the_published_length(path):
    matrix = read_matrix(path)
    runs = plan(matrix, path, threads=1)
    group = path.stem.removesuffix("_mcmc")
    scenes = {path.stem for path in DNERF} if group.startswith("dnerf") else GROUPS[group]
    assert {run.cell.scene for run in runs} == scenes
    for run in runs:
        assert run.experiment.dataset.folder.name == run.cell.scene
        assert run.cell.length == {"dnerf_hexplane": 23_000, "dnerf_mlp": 40_000}.get(group, 30_000)
        assert type(run.experiment.strategy).__name__ == ("Mcmc" if path.stem.endswith("_mcmc") else "Classic")


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_what_a_sweep_trains_may_stand_beside_the_published_numbers(path, published):
    tables = published.read_tables()
    table = next(table for key, table in tables.items() if path.stem.startswith(key))
    for run in plan(read_matrix(path), path, threads=1):
        settings = dump(run.experiment)
        record = {"steps": run.cell.length, "checkpoint": "last", "split": "test"}
        trained = published.Run(run.experiment.folder, settings, record)
        assert published.difference(table, run.cell.scene, trained) is None
        assert published.label_of(table, run.cell.scene, trained) == run.cell.arm


def test_downloads_go_where_the_settings_look_for_them(download):
    sets = download.read_sets()
    places = {archive.into for key in ("mipnerf360", "nerf_synthetic", "dnerf") for archive in sets[key].archives}
    # tandt_db.zip has the folders tandt and db of its own.
    assert sets["tandt_db"].archives[0].into == "."
    folders = {load(Experiment, [path]).dataset.folder for path in [*SCENES, *DNERF]}
    assert {folder.relative_to("/data").parts[0] for folder in folders} == places | {"tandt", "db"}
