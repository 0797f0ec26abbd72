"""One thread, and tiny data sets in the formats of the real files."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("flwr_datasets")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all five data sets, small; for reading only."""
    from paper_files import write_all

    folder = tmp_path_factory.mktemp("data")
    write_all(folder)
    return folder
