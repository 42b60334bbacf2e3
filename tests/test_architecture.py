"""The shape of the code: who may import whom, and that ARCHITECTURE.md names every part."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sdm_cli"
MODULES = sorted(path.relative_to(ROOT).with_suffix("") for path in PACKAGE.rglob("*.py"))
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")

BASIS = {"resources", "console", "files", "documents", "fields"}
# Part of the program -> the parts it may import, besides itself.
ALLOWED = {
    "errors": set(),
    "fields": set(),
    "data_config": {"fields"},
    "config": {"data_config", "fields"},
    "preset_files": {"errors", "config", "data_config", "resources", "documents"},
    "resources": {"errors"},
    "console": {"errors"},
    "files": {"errors"},
    "documents": {"errors"},
    "data": {"errors", "config", "data_config", "preset_files", *BASIS},
    "method": {"errors", "config", "data_config", "preset_files", *BASIS},
    "runs": {"errors", "config", "data_config", "preset_files", *BASIS, "data", "method"},
    "cli": {"errors", "console"},
    "__main__": {"cli"},
    "__init__": set(),
}
# The names under which distributions are imported.
IMPORT_NAMES = {
    "array-api-compat": "array_api_compat",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "huggingface-hub": "huggingface_hub",
    "simpleitk": "SimpleITK",
}
DATA_WITH_TORCH = {"pairs", "augment"}


def part_of(module: str) -> str:
    """`sdm_cli.data.store` belongs to `data`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports_of(path: Path, top_level_only: bool = False) -> set[str]:
    """Full names of everything that a module imports, `from package import module` resolved."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                is_module = (ROOT / full.replace(".", "/")).with_suffix(".py").is_file()
                found.add(full if is_module or (ROOT / full.replace(".", "/")).is_dir() else node.module)
    return found


def distribution_imports(distributions: list[str]) -> set[str]:
    names = [re.split(r"[\[<>=!~ ;]", distribution)[0].lower() for distribution in distributions]
    return {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names}


def test_there_are_modules():
    assert len(MODULES) > 15


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_import_rules(module):
    part = module.parts[1]
    allowed = ALLOWED[part]
    own = {"__init__", part}
    imported = {name for name in imports_of(ROOT / module.with_suffix(".py")) if name.split(".")[0] == "sdm_cli"}
    if part in ("cli", "__init__"):  # commands import their runs when they are called, the package its Python face
        imported &= imports_of(ROOT / module.with_suffix(".py"), top_level_only=True)
    assert {part_of(name) for name in imported} <= allowed | own


def test_every_part_has_a_rule():
    assert {module.parts[1] for module in MODULES} == set(ALLOWED)


@pytest.mark.parametrize("module", [module for module in MODULES if module.parts[1] == "data"], ids=str)
def test_reading_scans_needs_no_torch(module):
    if module.name not in DATA_WITH_TORCH:
        assert "torch" not in {name.split(".")[0] for name in imports_of(ROOT / module.with_suffix(".py"))}


def test_only_declared_dependencies_are_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = [item for extra, items in project["optional-dependencies"].items() if extra != "dev" for item in items]
    declared = distribution_imports([*project["dependencies"], *optional])
    imported = {name.split(".")[0] for module in MODULES for name in imports_of(ROOT / module.with_suffix(".py"))}
    assert imported - set(sys.stdlib_module_names) - {"sdm_cli"} <= declared
    # What runs at once is there without an extra.
    at_once = {
        name.split(".")[0]
        for module in MODULES
        for name in imports_of(ROOT / module.with_suffix(".py"), top_level_only=True)
    }
    assert at_once & distribution_imports(optional) == set()


def test_declared_dependencies_are_used():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    imported = {name.split(".")[0] for module in MODULES for name in imports_of(ROOT / module.with_suffix(".py"))}
    assert distribution_imports(project["dependencies"]) <= imported


def test_architecture_names_every_module():
    missing = [
        str(module)
        for module in MODULES
        if module.name != "__init__" and not re.search(rf"`{re.escape(module.name)}(\.py)?`", ARCHITECTURE)
    ]
    assert missing == []


def test_architecture_names_no_module_that_is_gone():
    names = {module.name for module in MODULES}
    table = re.findall(r"^\| `(\w+)(?:\.py)?` \|", ARCHITECTURE, flags=re.MULTILINE)
    assert table
    assert set(table) <= names


@pytest.mark.parametrize(("name", "most"), [("ARCHITECTURE.md", 120), ("CONTRIBUTING.md", 60)])
def test_documents_stay_short(name, most):
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= most


def test_json_and_csv_are_written_in_one_place():
    """torch's own JSON, within a program of its, goes back to torch as it came."""
    own = {"files", "documents", "torch_program"}
    words = re.compile(r"json\.dump|csv\.(?:Dict)?[wW]riter")
    writers = {module.name for module in MODULES if words.search((ROOT / module.with_suffix(".py")).read_text("utf-8"))}
    assert writers <= own and "files" in writers


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_modules_stay_small_and_say_what_they_own(module):
    text = (ROOT / module.with_suffix(".py")).read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= 320
