"""What pyproject.toml installs: the three commands and no more than they need."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from chatserver import __version__
from testkit.processes import DEADLINE, ROOT, wait_for

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
METADATA = PROJECT["project"]
EXTRAS: dict[str, list[str]] = METADATA["optional-dependencies"]
PACKAGES: list[str] = PROJECT["tool"]["setuptools"]["packages"]
MODULES: list[str] = PROJECT["tool"]["setuptools"]["py-modules"]
COMPILED = {module["name"] for module in PROJECT["tool"]["setuptools"]["ext-modules"]}
NOT_SHIPPED = {"tests", "testkit", "stress", "benchmarks"}
NOT_BUILT = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "data", "load-data")
EXTRA_OF = {"cluster": "cluster", "loadtest": "load"}  # what needs more than the programs do
INSTALL_SECONDS = 240.0


def pins(file: str) -> dict[str, str]:
    """The version of each package in a file of requirements."""
    lines = (line.partition("#")[0].partition(";")[0].strip() for line in (ROOT / file).read_text().splitlines())
    pinned = (line.partition("==") for line in lines if "==" in line)
    return {canonicalize_name(name): version for name, _, version in pinned}


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(each).name) for each in requirements}


def imports(file: Path) -> set[str]:
    """The top-level modules that a file imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_every_package_ships_except_those_for_tests_and_measurements() -> None:
    folders = {file.parent.relative_to(ROOT) for file in ROOT.glob("[a-z]*/**/__init__.py")}
    built = {"build", "dist", *NOT_SHIPPED}
    assert sorted(PACKAGES) == sorted(".".join(folder.parts) for folder in folders if folder.parts[0] not in built)
    assert sorted(MODULES) == sorted(file.stem for file in ROOT.glob("*.py"))


def test_every_package_that_ships_says_that_it_has_types() -> None:
    assert {name.partition(".")[0] for name in PACKAGES} == {file.parent.name for file in ROOT.glob("*/py.typed")}


def test_every_dependency_is_pinned_within_its_range() -> None:
    pinned = pins("requirements.txt")
    for text in [*METADATA["dependencies"], *(each for extra in EXTRAS.values() for each in extra)]:
        requirement = Requirement(text)
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{text} in pyproject.toml, {version} in requirements.txt"


@pytest.mark.parametrize("shipped", sorted({name.partition(".")[0] for name in PACKAGES} | set(MODULES)))
def test_shipped_code_imports_only_its_dependencies(shipped: str) -> None:
    files = [ROOT / f"{shipped}.py"] if shipped in MODULES else (ROOT / shipped).rglob("*.py")
    declared = names(METADATA["dependencies"] + EXTRAS.get(EXTRA_OF.get(shipped, ""), []))
    ours = {name.partition(".")[0] for name in PACKAGES} | set(MODULES) | COMPILED
    distributions = packages_distributions()
    for file in files:
        for module in imports(file) - sys.stdlib_module_names - ours:
            provided_by = {canonicalize_name(name) for name in distributions[module]}
            assert provided_by & declared, f"{file.relative_to(ROOT)} imports {module}, which is no dependency"


def test_the_changelog_begins_with_this_version() -> None:
    releases = re.findall(r"^## \[(\d[^\]]*)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert releases[0] == __version__


def test_pre_commit_and_make_lint_use_the_same_ruff() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"ruff-pre-commit\n +rev: v(\S+)", hooks) == [pins("requirements-dev.txt")["ruff"]]


def run(*command: object, cwd: Path, seconds: float = DEADLINE, typed: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, command)], cwd=cwd, input=typed, capture_output=True, text=True, timeout=seconds, check=False
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh environment with the wheel and its dependencies. Needs the package index."""
    folder = tmp_path_factory.mktemp("installed")
    shutil.copytree(ROOT, folder / "source", ignore=NOT_BUILT)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    build = (*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder / "source")
    built = run(*build, cwd=folder, seconds=INSTALL_SECONDS)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    made = run(sys.executable, "-m", "venv", folder / "venv", cwd=folder, seconds=INSTALL_SECONDS)
    assert made.returncode == 0, made.stderr
    programs = folder / "venv" / "bin"
    install = (programs / "python", "-m", "pip", "--disable-pip-version-check", "install", wheel)
    done = run(*install, "--constraint", ROOT / "requirements.txt", cwd=folder, seconds=INSTALL_SECONDS)
    if "connection broken by" in done.stderr:
        pytest.skip("pip cannot reach the package index")
    assert done.returncode == 0, done.stderr
    return programs


@pytest.fixture
def address(installed: Path, tmp_path: Path) -> Iterator[str]:
    """The address of an installed server that runs in tmp_path."""
    log = tmp_path / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen([installed / "chat-server", "--port", "0"], cwd=tmp_path, stderr=output)
    try:
        yield wait_for_match(server, log, r"listening on (\S+)")
    finally:
        server.terminate()
        assert server.wait(DEADLINE) == 0, log.read_text()


def wait_for_match(process: subprocess.Popen[bytes], file: Path, pattern: str) -> str:
    """Wait until the process has written this to its file; the first group."""
    found: list[str] = []

    def search() -> bool:
        found[:] = re.findall(pattern, file.read_text())
        return bool(found) or process.poll() is not None

    wait_for(pattern, search)
    assert found, f"ended without {pattern}: {file.read_text()}"
    return found[0]


@pytest.mark.slow
def test_the_installed_commands_chat_from_any_folder(installed: Path, address: str, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    received = elsewhere / "bob.out"
    listen = ("bob", address, "--linger", str(DEADLINE))
    with received.open("wb") as output:
        bob = subprocess.Popen([installed / "chat", *listen], cwd=elsewhere, stdin=subprocess.DEVNULL, stdout=output)
    try:
        wait_for_match(bob, received, r"(logged in)")
        alice = run(installed / "chat", "alice", address, cwd=elsewhere, typed="/chat bob\nhello from a wheel\n")
        assert alice.returncode == 0, alice.stderr
        wait_for_match(bob, received, r"(?m)^(alice: hello from a wheel)$")
    finally:
        bob.kill()
        bob.wait(DEADLINE)
    users = run(installed / "chat-admin", "users", "--data-dir", tmp_path / "data", cwd=elsewhere)
    assert users.returncode == 0, users.stderr
    assert re.findall(r"\b(alice|bob)\b", users.stdout) == ["bob", "alice"]


@pytest.mark.slow
def test_the_wheel_brings_neither_the_load_testers_packages_nor_the_tests(installed: Path, tmp_path: Path) -> None:
    absent = [*sorted(NOT_SHIPPED), "locustfiles", "locust", "flask", "hdrh", "redis", "hiredis"]
    find = f"from importlib.util import find_spec; print([name for name in {absent} if find_spec(name)])"
    done = run(installed / "python", "-c", find, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("command", [("chat-server",), ("chat-admin", "users")], ids=" ".join)
def test_redis_without_its_extra_is_a_clear_error(installed: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    done = run(installed / command[0], *command[1:], "--redis", "redis://127.0.0.1:1/0", cwd=tmp_path)
    assert done.returncode == 1
    assert "pip install 'small-packet-chat[cluster]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", ["chat-server", "chat", "chat-admin"])
def test_each_command_knows_its_name_and_version(installed: Path, tmp_path: Path, command: str) -> None:
    assert run(installed / command, "--version", cwd=tmp_path).stdout.startswith(f"{command} {__version__}")
