"""What is distributed: whole, and readable where there is no repository beside it."""

import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path

import pytest

pytest.importorskip("hatchling")
pytest.importorskip("build")

ROOT = Path(__file__).parents[1]
TARGET = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=[\"']([^\"']+)")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the source distribution, and the wheel from it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir"]
    done = subprocess.run(
        [*command, str(folder), str(ROOT)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def source(built: Path) -> Path:
    """Unpack the source distribution."""
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(built, filter="data")
    return archive.with_name(archive.name.removesuffix(".tar.gz"))


def targets(page: str) -> Iterator[str]:
    """List where the links and pictures of a page lead, but for web addresses."""
    for groups in TARGET.findall(page):
        target = "".join(groups)
        if not target.startswith(("https://", "http://", "mailto:")):
            yield target


def test_the_source_distribution_is_all_that_is_kept(source: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout to compare with")
    command = ["git", "-C", str(ROOT), "ls-files"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)

    kept = [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]

    assert len(kept) > 300
    assert [name for name in kept if not (source / name).exists()] == []


def test_its_pages_lead_to_files_that_are_in_it(source: Path) -> None:
    pages = [*source.glob("*.md"), *source.glob("docs/**/*.md")]
    dead = [
        (page.name, target)
        for page in pages
        for target in targets(page.read_text())
        if target.partition("#")[0]
        and not (page.parent / target.partition("#")[0]).exists()
    ]

    assert len(pages) > 10
    assert dead == []


def test_the_long_description_leads_nowhere_that_is_not_there(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        (name,) = [n for n in packed.namelist() if n.endswith(".dist-info/METADATA")]
        metadata = message_from_bytes(packed.read(name))
    page = str(metadata.get_payload())

    assert metadata["Description-Content-Type"] == "text/markdown"
    assert page.startswith("# flwr-autoflip")
    assert "pip install flwr-autoflip" in page
    assert "docs/report.png" in page
    assert list(targets(page)) == []
    assert list(targets((ROOT / "README.md").read_text()))  # the pattern finds some
