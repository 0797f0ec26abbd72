"""Build the package and try it where nothing else is installed.

    python .ci/package_check.py [minimum] [newest] [--folder DIR]

Builds the source distribution and from it the wheel, checks what is in both, then
for the lowest and the newest versions of the dependencies: a fresh environment, the
wheel alone, ``pip check``, none of the packages that only extras may bring, a tiny
federation (``smoke.py``), the command line, and ``mypy --strict`` on an app that sees
the installed package from outside (``typed_app.py``). Each environment takes some GB
while it is tried.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ONLY_EXTRAS = {"torchvision", "ray", "matplotlib", "flwr-datasets", "pandas", "onnx"}
IN_WHEEL = {"flwr_autoflip/__init__.py", "flwr_autoflip/py.typed"}
IN_SDIST = {"pyproject.toml", "hatch_build.py", "LICENSE", "README.md", "RESULTS.md"}


def main() -> None:
    """Build, then try each kind of environment that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=[])
    parser.add_argument("--folder", type=Path, help="default: a temporary one")
    given = parser.parse_args()
    kinds = given.kinds or ["minimum", "newest"]
    if wrong := set(kinds) - {"minimum", "newest"}:
        raise SystemExit(f"expected minimum or newest, got {sorted(wrong)}.")
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        wheel = build(Path(folder) / "dist")
        for kind in kinds:
            home = Path(folder) / kind
            try_in(home, kind, wheel)
            shutil.rmtree(home)  # before the next one takes as much


def build(folder: Path) -> Path:
    """Build both distributions; give the wheel's path."""
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as packed:
        inside = set(packed.namelist())
    strange = {
        n for n in inside if not n.startswith(("flwr_autoflip/", "flwr_autoflip-"))
    }
    demand(
        not strange, f"the wheel holds {sorted(strange)[:5]}, not the package alone."
    )
    demand(inside >= IN_WHEEL, f"the wheel lacks {sorted(IN_WHEEL - inside)}.")
    with tarfile.open(sdist) as packed_source:
        names = {n.partition("/")[2] for n in packed_source.getnames()}
    demand(names >= IN_SDIST, f"the sdist lacks {sorted(IN_SDIST - names)}.")
    print(f"{wheel.name}: {len(inside)} files; {sdist.name}: {len(names)} files")
    return wheel


def try_in(home: Path, kind: str, wheel: Path) -> None:
    """Install the wheel into a fresh environment, and use it."""
    run(sys.executable, "-m", "venv", home)
    python, empty = home / "bin" / "python", home / "empty"
    empty.mkdir()
    pip = (python, "-m", "pip", "--disable-pip-version-check")
    pins = lowest() if kind == "minimum" else []
    run(*pip, "install", "--quiet", wheel, *pins, show=False)
    run(*pip, "check")
    listed = json.loads(run(*pip, "list", "--format", "json", show=False))
    versions = {canonicalize_name(row["name"]): row["version"] for row in listed}
    extra = ONLY_EXTRAS & set(versions)
    demand(not extra, f"pip install flwr-autoflip brought {sorted(extra)}.")
    out = run(python, HERE / "smoke.py", cwd=empty, show=False).splitlines()[-1]
    demand(str(home) in out, f"another package than the installed one ran: {out}")
    for command in ("flwr-autoflip", "flwr"):
        run(home / "bin" / command, "--help", cwd=empty, show=False)
    run(*pip, "install", "--quiet", "mypy", show=False)
    run(python, "-m", "mypy", "--strict", HERE / "typed_app.py", cwd=empty)
    print(f"{kind}: {len(versions)} packages, none of {sorted(ONLY_EXTRAS)}; {out}")


def lowest() -> list[str]:
    """Pin every dependency to the lowest version that pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = []
    for requirement in map(Requirement, project["dependencies"]):
        floors = [s.version for s in requirement.specifier if s.operator == ">="]
        demand(len(floors) == 1, f"{requirement} has no single lowest version.")
        pins.append(f"{requirement.name}=={floors[0]}")
    return pins


def run(*command: object, cwd: Path | None = None, show: bool = True) -> str:
    """Run a command, or end with what it said."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    demand(done.returncode == 0, f"{' '.join(words)} failed:\n{done.stdout[-4000:]}")
    if show:
        print("\n".join(done.stdout.splitlines()[-1:]), flush=True)
    return done.stdout


def demand(held: bool, otherwise: str) -> None:
    """End with one clear line unless something holds."""
    if not held:
        raise SystemExit(f"package check: {otherwise}")


if __name__ == "__main__":
    main()
