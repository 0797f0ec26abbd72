"""What the pages show is so: examples run, keys and columns are all there."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import flwr_autoflip
from flwr_autoflip import errors, methods
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


def test_the_wire_page_names_every_key() -> None:
    page = (DOCS / "wire.md").read_text()
    known = {str(v) for v in vars(keys).values() if str(v).startswith(keys.PREFIX)}
    known -= {keys.PREFIX, keys.RESIDUAL, keys.RELEASED}  # stay on the node

    named = set(re.findall(r"^\| `(autoflip-[\w-]+)` \|", page, re.MULTILINE))

    assert named == known


def test_the_ledger_page_names_every_column() -> None:
    page = (DOCS / "howto" / "ledger.md").read_text()
    columns = {field.name for field in dataclasses.fields(NodeRow)}

    named = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))

    assert named == columns


def test_the_reference_has_every_public_name() -> None:
    page = (DOCS / "api.md").read_text()
    public = {*flwr_autoflip.__all__, "errors"} - set(vars(errors)) - {"__version__"}

    named = set(re.findall(r"^.. auto\w+:: flwr_autoflip\.(\w+)$", page, re.MULTILINE))

    assert named == public


def test_the_reference_has_every_method() -> None:
    page = (DOCS / "api.md").read_text()
    found = re.findall(r"^.. auto\w+:: flwr_autoflip\.methods\.([A-Z]\w+)$", page, re.M)

    assert set(found) == set(methods.__all__) - {"NAMES", "named"}


def test_what_is_cited_is_what_is_implemented() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    texts = [*ROOT.glob("*.md"), *PAGES, ROOT / "CITATION.cff", ROOT / "pyproject.toml"]
    texts += [*ROOT.glob("flwr_autoflip/**/*.py"), *ROOT.glob("examples/**/*.py")]

    cited = [re.findall(r"2405\.10271(v\d|)", path.read_text()) for path in texts]

    assert {version for found in cited for version in found} == {"v3"}
    assert citation["version"] == flwr_autoflip.__version__


@pytest.mark.slow
def test_it_builds_without_a_warning(tmp_path: Path) -> None:
    for name in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(name)
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
