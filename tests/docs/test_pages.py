"""What the pages show is so: examples run, keys and columns are all there."""

import dataclasses
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import flwr_autoflip
from flwr_autoflip import PRESETS
from flwr_autoflip.ledger.rows import NodeRow
from flwr_autoflip.wire import keys

sys.path.insert(0, str(Path(__file__).parent))
from pages import DOCS, PAGES, ROOT, blocks, run_python

TUTORIAL = DOCS / "tutorial.md"  # test_tutorial.py runs it
WITH_CODE = [
    path
    for path in PAGES
    if path != TUTORIAL and any(b.language == "python" for b in blocks(path))
]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda p: str(p.relative_to(DOCS)))
def test_python_blocks_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    compared = run_python(
        [b for b in blocks(page) if b.language == "python"], {}, page.name
    )

    assert compared > 0


def test_there_are_pages_with_code() -> None:
    assert {"wire.md", "method.md", "model.md"} <= {path.name for path in WITH_CODE}


def test_the_wire_page_names_every_key() -> None:
    page = (DOCS / "wire.md").read_text()
    known = {
        value
        for name, value in vars(keys).items()
        if name.startswith("KEY_") and isinstance(value, str)
    }

    named = set(re.findall(r"^\| `(autoflip-[\w-]+)` \|", page, re.MULTILINE))

    assert named == known


def test_the_ledger_page_names_every_column() -> None:
    page = (DOCS / "howto" / "ledger.md").read_text()
    columns = {field.name for field in dataclasses.fields(NodeRow)}

    named = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))

    assert named == columns


def test_the_reference_has_every_public_name() -> None:
    page = (DOCS / "api.md").read_text()
    errors = set(vars(importlib.import_module("flwr_autoflip.errors")))
    public = set(flwr_autoflip.__all__) - errors
    public -= {"PRESETS", "__version__", "methods"}

    named = set(re.findall(r"^.. auto\w+:: flwr_autoflip\.(\w+)$", page, re.MULTILINE))

    assert named - {"errors"} == public
    assert "automodule:: flwr_autoflip.errors" in page


def test_the_method_page_names_every_preset() -> None:
    page = (DOCS / "method.md").read_text()

    assert [name for name in PRESETS if f'`"{name}"`' not in page] == []


def test_the_citation_names_this_version_and_both_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    papers = [citation["preferred-citation"], *citation["references"]]

    assert citation["version"] == flwr_autoflip.__version__
    assert [paper["identifiers"][0]["value"] for paper in papers] == [
        "arXiv:2405.10271v3",
        "arXiv:2411.01759",
    ]
    assert papers[0]["title"].startswith("Federated Hybrid Model Pruning through Loss")


def test_the_paper_is_cited_in_the_version_that_is_implemented() -> None:
    code = [*ROOT.glob("flwr_autoflip/**/*.py"), *ROOT.glob("examples/**/*.py")]
    texts = [*ROOT.glob("*.md"), *PAGES, ROOT / "CITATION.cff", ROOT / "pyproject.toml"]
    cited = {
        (path.name, version)
        for path in (*code, *texts)
        for version in re.findall(r"2405\.10271(v\d|)", path.read_text())
    }

    assert {version for _, version in cited} == {"v3"}
    assert {"README.md", "method.md", "index.md", "CITATION.cff", "guidance.py"} <= {
        name for name, _ in cited
    }


@pytest.mark.parametrize("page", ["README.md", "docs/method.md", "CITATION.cff"])
def test_the_papers_other_versions_are_named_as_others(page: str) -> None:
    text = " ".join((ROOT / page).read_text().split())

    assert "10.1109/JIOT.2026.3686028" in text
    assert (
        "Pruning Federated Models through Loss Landscape Analysis and Client Agreement "
        "Scoring"
    ) in text
    assert "not implement" in text


def test_it_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    pytest.importorskip("myst_parser")
    pytest.importorskip("furo")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E"]

    done = subprocess.run(
        [*command, str(DOCS), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    method = (tmp_path / "method.html").read_text()
    assert method.count("<math") > 10
    built = [path.read_text() for path in tmp_path.rglob("*.html")]
    assert len(built) > len(PAGES)
    # Nothing is fetched when a page is read: no script, style or font from elsewhere.
    fetched = r'<(?:script|img|link)[^>]+(?:src|href)="https?://'
    assert [page for page in built if re.search(fetched, page)] == []
