"""What all tests share: a deterministic hypothesis, and where the real data are."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# A first call compiles shape checks and kernels, which no per-example deadline survives.
settings.register_profile("project", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("project")

REPOSITORY = Path(__file__).parent.parent
DATA = Path(os.environ.get("NFC_GS_DATA", REPOSITORY.parent / "shared" / "data"))


@pytest.fixture
def data() -> Path:
    """The folder of real captures; the test is skipped where there is none."""
    if not DATA.is_dir():
        pytest.skip(f"no data folder at {DATA}: set NFC_GS_DATA")
    return DATA
