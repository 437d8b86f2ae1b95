"""The house's rules that no import contract can hold."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nfc_gs.cli import FAMILIES
from nfc_gs.config import find, kinds, read
from nfc_gs.training.experiment import Experiment
from tests.conftest import REPOSITORY

MEMBERS = [(family, kind) for family in FAMILIES for kind in kinds(family)]
# Folders of settings that lie over a scene's, and of studies.
OVERLAYS = {"methods", "schedules", "fields", "published", "nfc", "studies"}
SCENES = sorted(
    p
    for p in (REPOSITORY / "configs").rglob("*.yaml")
    if not OVERLAYS & set(p.relative_to(REPOSITORY).parts) and p.name != "base.yaml"
)
METHODS = sorted((REPOSITORY / "configs" / "methods").glob("*.yaml"))


@pytest.mark.parametrize(("family", "kind"), MEMBERS)
def test_every_member_has_a_documented_spec(family, kind):
    member = find(family, kind)
    assert member.__doc__ and member.__module__ == f"{family}.{kind}"


@pytest.mark.parametrize("method", METHODS, ids=lambda path: path.stem)
@pytest.mark.parametrize("scene", SCENES, ids=lambda path: path.stem)
def test_every_scene_loads_under_every_method(scene, method, monkeypatch):
    from nfc_gs.config import load

    monkeypatch.setenv("NFC_GS_DATA", "somewhere")
    overrides = (
        [] if "folder" in read([scene]).get("dataset", {}) or "toy" in scene.stem else ["dataset.folder=somewhere"]
    )
    experiment = load(Experiment, [scene, method], overrides)
    assert experiment.steps > 0


def test_the_program_answers_help_without_importing_torch():
    code = "import sys, nfc_gs.cli; nfc_gs.cli.make_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


@pytest.mark.parametrize("tool", ["chamfer", "chunks", "confidence", "few_bits"])
def test_a_tool_imports_torch_after_the_package_that_tells_its_threads_to_sleep(tool):
    text = (REPOSITORY / "tools" / f"{tool}.py").read_text()
    assert re.findall(r"^(?:import|from) (nfc_gs|torch)\b", text, flags=re.MULTILINE)[0] == "nfc_gs"


def test_the_commands_in_the_readme_are_ones_the_program_has():
    text = (REPOSITORY / "README.md").read_text()
    commands = set(re.findall(r"^(?:\.venv/bin/)?nfc-gs (\w+)", text, flags=re.MULTILINE))
    assert commands and commands <= {"train", "sweep", "eval", "render", "export", "kinds", "doctor", "bench"}
    for path in re.findall(r"configs/[\w/]+\.yaml", text):
        assert (REPOSITORY / path).is_file(), path


# ---- environment.yml, pyproject.toml and constraints.txt say the same


def requirements(lines: list[str]) -> dict[str, str]:
    """Package names, normalized, and their version specifiers."""
    found = {}
    for line in lines:
        match = re.match(r"([A-Za-z0-9_.-]+)\s*([^;]*)", line)
        if match and not line.startswith(("#", "-e")):
            found[re.sub(r"[-_.]+", "-", match[1]).lower()] = match[2].strip()
    return found


def project() -> dict:
    import tomllib

    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def environment() -> tuple[list[str], list[str]]:
    dependencies = yaml.safe_load((REPOSITORY / "environment.yml").read_text())["dependencies"]
    return [d for d in dependencies if isinstance(d, str)], next(d["pip"] for d in dependencies if isinstance(d, dict))


def test_every_constraint_lies_in_the_projects_range():
    from packaging.specifiers import SpecifierSet

    pinned = requirements((REPOSITORY / "constraints.txt").read_text().splitlines())
    wanted = requirements(project()["dependencies"]) | requirements(
        [line for extra in project()["optional-dependencies"].values() for line in extra]
    )
    for name, versions in wanted.items():
        if name == "open3d":  # its CPU build, under another name, is what is pinned
            continue
        assert name in pinned, f"constraints.txt does not pin {name}"
        assert SpecifierSet(versions).contains(pinned[name].removeprefix("==")), name


def test_the_environment_names_what_the_project_is_made_of_within_its_ranges():
    from packaging.specifiers import SpecifierSet

    conda, pip = environment()
    listed = requirements(pip)
    assert {"torch", "gsplat", "plyfile", "numpy", "open3d", "tensorboard"} <= set(listed)
    pinned = requirements((REPOSITORY / "constraints.txt").read_text().splitlines())
    for name, versions in listed.items():
        exact = pinned["open3d-cpu" if name == "open3d" else name].removeprefix("==")
        assert SpecifierSet(versions).contains(exact), name
    python = next(d for d in conda if d.startswith("python=")).removeprefix("python=")
    assert SpecifierSet(project()["requires-python"]).contains(python)


def test_torch_is_pinned_without_a_local_version():
    assert "torch==2.13.0" in (REPOSITORY / "constraints.txt").read_text().splitlines()


def test_no_module_is_longer_than_a_person_reads_in_one_sitting():
    long = [
        str(path.relative_to(REPOSITORY))
        for package in ("nfc_gs", "dynamic", "tools")
        for path in Path(REPOSITORY / package).rglob("*.py")
        if len(path.read_text().splitlines()) > 600
    ]
    assert not long
