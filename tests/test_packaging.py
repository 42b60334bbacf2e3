"""What is installed: the wheel's file list, and that it works outside of the repository."""

import shutil
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
import yaml

from sdm_cli import __version__

ROOT = Path(__file__).parent.parent
SOURCES = ("sdm_cli", "presets", "splits", "pyproject.toml", "README.md", "LICENSE", "NOTICE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """Wheel of a copy of the sources: building leaves nothing in the repository."""
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(copy / "dist"), str(copy)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = (copy / "dist").glob("*.whl")
    return zipfile.ZipFile(path)


def installed_files() -> set[str]:
    """Names that the wheel must hold: all modules, all YAML files at their places in the package, the type marker."""
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "sdm_cli").rglob("*.py")}
    data = {f"sdm_cli/{path.relative_to(ROOT)}" for name in ("presets", "splits") for path in (ROOT / name).iterdir()}
    return {name for name in modules | data if "__pycache__" not in name} | {"sdm_cli/py.typed"}


def test_wheel_holds_exactly_the_program(wheel):
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert {"sdm_cli/presets/laseg-5-cpu.yaml", "sdm_cli/splits/laseg-5.yaml", "sdm_cli/data/store.py"} <= found
    assert found == installed_files()


def test_wheel_says_what_it_is(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = message_from_string(wheel.read(name).decode())
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("License-File")) == {"LICENSE", "NOTICE"}
    assert metadata["Requires-Python"] == ">=3.11"
    (torch,) = (requirement for requirement in metadata.get_all("Requires-Dist") if requirement.startswith("torch"))
    assert "<2.14" in torch
    (entry_points,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    assert b"sdm = sdm_cli.cli:main" in wheel.read(entry_points)


def test_presets_are_found_in_the_wheel(wheel, tmp_path):
    wheel.extractall(tmp_path)
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); "
        "import sdm_cli.resources as resources; print(resources.__file__, *resources.preset_names())"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
    where, *names = result.stdout.split()
    assert Path(where).is_relative_to(tmp_path)
    assert set(names) == {path.stem for path in (ROOT / "presets").glob("*.yaml")}


def test_licence_is_the_full_text():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert "medpy" in (ROOT / "NOTICE").read_text(encoding="utf-8")


def test_the_citation_is_that_of_this_version_and_of_the_paper():
    """The keys that CFF 1.2.0 asks for, and what `docs/research.md` says too."""
    tree = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= tree.keys() and tree["cff-version"] == "1.2.0"
    assert tree["version"] == __version__ and tree["license"] == "Apache-2.0"
    assert tree["authors"] == [{"name": "The sdm developers"}]
    (paper,) = tree["references"]
    assert {"type", "title", "authors"} <= paper.keys()
    research = (ROOT / "docs/research.md").read_text(encoding="utf-8")
    assert paper["title"].replace("&", "\\&") in research and str(paper["year"]) in research
    names = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    assert names in research
    assert paper["url"].rpartition("/")[2] == paper["identifiers"][0]["value"].removeprefix("arXiv:") == "2407.07763"
