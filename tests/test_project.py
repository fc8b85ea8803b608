"""The repository itself: the Makefile's help, pinned dependencies, names in CONTRIBUTING.md."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions

from colq_utils.base import config


def test_make_help_names_every_target():
    makefile = (config.ROOT / "Makefile").read_text()
    done = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=config.ROOT, capture_output=True, text=True, check=True
    )
    targets = set(re.search(r"^\.PHONY: (.+)$", makefile, re.M)[1].split())
    assert (
        set(re.findall(r"^  make ([\w-]+) ", done.stdout, re.M))
        == targets
        == set(re.findall(r"^([a-z][a-z-]*):(?!=)", makefile, re.M))
    )
    assert re.findall(r"^(\w+)$", done.stdout, re.M) == ["Run", "Look", "Develop"]


def test_make_clean_keeps_checkpoints():
    done = subprocess.run(
        ["make", "--dry-run", "clean"], cwd=config.ROOT, capture_output=True, text=True, check=True
    )
    removed = [line for line in done.stdout.splitlines() if "rm " in line]
    assert removed and not any(re.search(r"build|results|figures", line) for line in removed), removed


def test_what_is_imported_is_declared_and_locked():
    """What is imported by name is a pinned dependency; every pin stands in requirements.lock."""
    project = tomllib.loads((config.ROOT / "pyproject.toml").read_text())["project"]
    pins = {
        pin.split(";")[0].strip().lower()
        for group in (project["dependencies"], *project["optional-dependencies"].values())
        for pin in group
    }
    locked = {line.lower() for line in (config.ROOT / "requirements.lock").read_text().splitlines()}
    assert pins - locked <= {pin.lower() for pin in project["optional-dependencies"]["cuda"]}
    folders = [config.ROOT / folder for folder in ("colq_utils", "studies", "tests")]
    engines = config.ROOT / "studies" / "interop" / "children"  # run in environments of their own
    sources = [path for folder in folders for path in folder.rglob("*.py") if engines not in path.parents]
    here = {"colq_utils", "studies", *(path.stem for path in (config.ROOT / "tests").rglob("*.py"))}
    nodes = [node for path in sources for node in ast.walk(ast.parse(path.read_text()))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    modules = (
        {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - here - {"triton"}
    )  # comes with torch
    packages = packages_distributions()
    declared = {pin.split("==")[0].replace("_", "-") for pin in pins}
    missing = {
        module
        for module in modules
        if not {p.lower().replace("_", "-") for p in packages.get(module, [module, f"{module}-kernels"])}
        & declared
    }
    assert not missing, "imported, but in neither dependencies nor extras of pyproject.toml"


def test_contributing_names_what_is_there():
    """Every file that CONTRIBUTING.md names exists, and every name that it places in a file stands there."""
    text = (config.ROOT / "CONTRIBUTING.md").read_text()

    def where(path: str):
        return next((p for p in (config.ROOT / path, config.ROOT / "colq_utils" / path) if p.exists()), None)

    paths = [path for path in re.findall(r"`([\w./]+(?:/|\.(?:py|toml|lock|parquet)))`", text)]
    assert len(paths) > 20 and all(where(path) for path in paths), [path for path in paths if not where(path)]
    placed = re.findall(r"`(\w+)`(?: and `(\w+)`)? (?:in|of) `([\w/]+\.py)`", text)
    placed += re.findall(r"`(\w+)`() \(`([\w/]+\.py)`\)", text)
    assert len(placed) >= 7
    for first, second, path in placed:
        assert first in where(path).read_text() and second in where(path).read_text(), (first, second, path)
