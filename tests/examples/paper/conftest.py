"""Tiny data sets in the formats of the real files."""

from pathlib import Path

import pytest

pytest.importorskip("torchvision")
pytest.importorskip("flwr_datasets")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all five data sets, small; for reading only."""
    from paper_files import write_all

    folder = tmp_path_factory.mktemp("data")
    write_all(folder)
    return folder
