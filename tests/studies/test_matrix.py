"""What a study's file describes."""

from pathlib import Path

import pytest

from nfc_gs.config import ConfigError, kinds
from nfc_gs.studies.matrix import Cell, StudyError, cells, plan, read_matrix
from tests.conftest import REPOSITORY

# The others there are bases of these.
STUDIES = sorted(path for path in (REPOSITORY / "configs" / "studies").glob("*.yaml") if "seeds:" in path.read_text())
STUDY = """
arms:
  plain: [{repository}/configs/methods/regression.yaml]
  more: [{repository}/configs/methods/regression.yaml, losses.mse.weight=1.0]
controls: [plain]
scenes:
  toy: [{repository}/configs/toy.yaml, dataset.size=64]
  small: [{repository}/configs/toy.yaml, dataset.size=32]
conditions: {{clean: [], noisy: [degradation.noise=0.1]}}
lengths: [10, 40]
seeds: [0, 1, 2]
"""


def study(folder: Path, more: str = "", **replaced: str) -> Path:
    path = folder / "little.yaml"
    text = STUDY.format(repository=REPOSITORY)
    for old, new in replaced.items():
        text = "\n".join(new if line.startswith(f"{old}:") else line for line in text.splitlines())
    path.write_text(text + more + f"\noutput: {folder}/runs\n")
    return path


def test_a_study_is_the_product_of_its_axes(tmp_path: Path) -> None:
    path = study(tmp_path)
    matrix = read_matrix(path)
    found = cells(matrix, path)
    assert len(set(found)) == len(found) == 2 * 2 * 2 * 2 * 3
    assert matrix.name == "little" and matrix.folder == tmp_path / "runs/little"
    # Short ones first, and of those seed by seed: whatever is done can be compared.
    assert found[0] == Cell(scene="toy", condition="clean", length=10, arm="plain", seed=0)
    assert [cell.length for cell in found] == [10] * 24 + [40] * 24
    assert {cell.seed for cell in found[:8]} == {0}


def test_exclude_takes_out_and_include_adds(tmp_path: Path) -> None:
    path = study(
        tmp_path,
        "exclude: [{scene: toy, length: 40}, {arm: more, condition: [noisy]}]\n"
        "include: [{scene: small, condition: clean, length: 999, seed: [7, 8]}]",
    )
    found = cells(read_matrix(path), path)
    assert not [cell for cell in found if (cell.scene, cell.length) == ("toy", 40)]
    assert not [cell for cell in found if (cell.arm, cell.condition) == ("more", "noisy")]
    added = [cell for cell in found if cell.length == 999]
    assert sorted((cell.arm, cell.seed) for cell in added) == [("more", 7), ("more", 8), ("plain", 7), ("plain", 8)]


def test_a_runs_settings_are_its_scenes_its_studys_its_conditions_and_its_arms_in_this_order(tmp_path: Path) -> None:
    path = study(tmp_path, "settings: [dataset.size=48, losses.mse.weight=0.5, threads=7]\nevaluations: 5")
    runs = {run.cell.name: run.experiment for run in plan(read_matrix(path), path, threads=2)}
    more = runs["toy_noisy_more_40_s2"]
    assert (more.steps, more.seed, more.threads, more.evaluation.every) == (40, 2, 2, 8)
    assert more.degradation.noise == 0.1 and more.losses["mse"].weight == 1.0
    assert runs["toy_clean_plain_40_s2"].losses["mse"].weight == 0.5
    assert runs["toy_clean_plain_40_s2"].dataset == runs["small_clean_plain_40_s2"].dataset  # the study's size for both
    assert more.folder == tmp_path / "runs/little/toy_noisy_more_40_s2"


def test_overrides_of_the_command_line_change_the_study(tmp_path: Path) -> None:
    path = study(tmp_path)
    matrix = read_matrix(path, ("seeds=[5]", "lengths=[20]", "conditions.noisy=null"))
    assert {(cell.seed, cell.length, cell.condition) for cell in cells(matrix, path)} == {(5, 20, "clean")}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("exclude: [{scene: toi}]", "exclude names 'toi', which is not among toy, small; did you mean 'toy'"),
        ("exclude: [{scenes: toy}]", "exclude.0.scenes: no such setting"),
        ("include: [{arm: none}]", "include names 'none'"),
        ("exclude: [{length: [10, 40]}]", "describes no run"),
        ("workers: {kind: slurn}", "did you mean 'slurm'"),
        ("armz: {}", "no setting 'armz'; did you mean 'arms'"),
    ],
)
def test_a_mistake_in_a_study_is_told_in_one_line(tmp_path: Path, more: str, message: str) -> None:
    path = study(tmp_path, more)
    with pytest.raises((StudyError, ConfigError)) as caught:
        read_matrix(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_controls_are_arms(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"controls names 'plane'.*did you mean 'plain'"):
        read_matrix(study(tmp_path, controls="controls: [plane]"))


def test_two_combinations_never_share_a_folder(tmp_path: Path) -> None:
    path = study(tmp_path, conditions="conditions: {a: [], a_b: []}", controls="controls: []")
    text = path.read_text().replace("  plain:", "  b_c:").replace("  more:", "  c:")
    path.write_text(text)
    with pytest.raises(StudyError, match="would both be called"):
        read_matrix(path)


def test_an_axis_name_that_is_no_folder_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="cannot be part of a folder's name"):
        read_matrix(study(tmp_path, conditions="conditions: {a/b: []}"))
    with pytest.raises(StudyError, match="name: 'a/b' cannot be part of a folder's name"):
        read_matrix(study(tmp_path), ("name=a/b",))


def test_wrong_settings_of_a_run_name_the_run(tmp_path: Path) -> None:
    path = study(tmp_path, "settings: [dataset.sice=3]")
    with pytest.raises(ConfigError, match=r"toy_clean_plain_10_s0: .*did you mean 'size'"):
        plan(read_matrix(path), path, threads=1)


def test_a_scene_without_settings_is_told(tmp_path: Path) -> None:
    path = study(tmp_path)
    path.write_text(path.read_text().replace("configs/toy.yaml, dataset.size=64", "configs/methods/nfc.yaml"))
    with pytest.raises(StudyError, match="scene toy names no settings with dataset"):
        plan(read_matrix(path), path, threads=1)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_of_the_project_describes_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NFC_GS_DATA", "somewhere")
    matrix = read_matrix(path)
    # One of everything is enough to check every word of it.
    runs = plan(read_matrix(path, (f"seeds=[{matrix.seeds[0]}]",)), path, threads=1)
    assert runs and matrix.controls
    assert {run.cell.arm for run in runs} == set(matrix.arms)
    if path.stem.endswith("_tuning"):
        # What weights were chosen by judges nothing.
        judging = read_matrix(path.with_stem(path.stem.replace("_tuning", "_tuned")))
        assert not set(matrix.seeds) & set(judging.seeds)
    else:
        assert len(matrix.seeds) >= 3


def test_local_and_slurm_are_the_workers_there_are() -> None:
    assert kinds("nfc_gs.studies.workers") == ["local", "slurm"]
