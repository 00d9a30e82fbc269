"""The rooms of the package import in one direction, and importing it is light."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "darts_bio"

# A room knows itself and the rooms before it.
ORDER = [
    "version",
    "errors",
    "bounded",
    "registry",
    "invocation",
    "config",
    "plugins",
    "private_torch",
    "environment",
    "distributed",
    "draws",
    "process_group",
    "runtime",
    "modes",
    "passes",
    "optimizers",
    "rules",
    "learners",
    "spaces",
    "networks",
    "strategies",
    "data",
    "storage",
    "training",
    "evaluation",
    "figures",
    "reports",
    "interop",
    "models",
    "monitoring",
    "runs",
    "api",
    "cli",
    "__main__",
]


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imports_of(path: Path) -> set[str]:
    """The rooms of darts_bio that a file imports at any depth of its code, but for type
    checking.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules.add(node.module or "")
    return {room(m) for m in modules if m == "darts_bio" or m.startswith("darts_bio.")} - {
        "__init__"
    }


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_a_file_imports_its_own_room_and_those_before_it(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        return  # names the homes of the public functions, and imports them when they are asked for
    later = {other for other in imports_of(path) if ORDER.index(other) > ORDER.index(own)}
    assert not later


def test_every_room_is_in_the_order() -> None:
    rooms = {p.relative_to(PACKAGE).parts[0].removesuffix(".py") for p in PACKAGE.rglob("*.py")} - {
        "__init__"
    }
    assert rooms == set(ORDER)


def test_the_map_of_the_rooms_names_every_file() -> None:
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    words = set(re.findall(r"\w+", page))
    names = {path.stem for path in PACKAGE.rglob("*.py") if not path.stem.startswith("__")}
    assert names - words == set()


@functools.cache
def modules_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_and_its_configuration_loads_no_torch() -> None:
    assert not {"torch", "numpy", "timm"} & modules_after(
        "import darts_bio, darts_bio.config, darts_bio.cli"
    )


def test_training_loads_no_torchvision_timm_or_tensorboard() -> None:
    loaded = modules_after("import darts_bio.api")
    assert not {"torchvision", "timm", "tensorboard", "matplotlib"} & loaded


def test_nothing_loads_the_compiler_before_it_is_needed() -> None:
    """Its import takes longer than that of PyTorch itself."""
    loaded = modules_after("import darts_bio.api")
    assert "torch._dynamo" not in loaded


def test_a_search_on_the_digits_loads_no_scientific_library() -> None:
    """SciPy and scikit-learn take seconds to import, and 146 MB of disk."""
    use = "import darts_bio.training.search, darts_bio.data.datasets as sets; sets.load_data('digits')"
    assert not {"scipy", "sklearn"} & modules_after(use)
