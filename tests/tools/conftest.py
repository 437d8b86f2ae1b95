"""The programs of tools/, which is not a package, as modules."""

import importlib.util
import sys
from types import ModuleType

import pytest

from tests.conftest import REPOSITORY


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tool_{name}", REPOSITORY / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def published() -> ModuleType:
    return _load("published")


@pytest.fixture(scope="session")
def download() -> ModuleType:
    return _load("download")


@pytest.fixture(scope="session")
def interpolation() -> ModuleType:
    return _load("interpolation")


@pytest.fixture(scope="session")
def time_to_quality() -> ModuleType:
    return _load("time_to_quality")


@pytest.fixture(scope="session")
def step_race() -> ModuleType:
    return _load("step_race")
