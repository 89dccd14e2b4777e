"""The package as a whole: one version, typed, dependencies locked, documents that speak of what exists."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import tomllib
from pathlib import Path

import greenroom

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAKEFILE = (ROOT / "Makefile").read_text()

REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?(.*)$")


def tracked_files() -> list[Path]:
    """The text files that are in the repository, or would be with the next commit."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listed.splitlines()]
    return [file for file in files if file.is_file() and b"\0" not in file.read_bytes()]


def normal(name: str) -> str:
    """A package's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_version_is_written_in_one_place() -> None:
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["hatch"]["version"] == {"path": "src/greenroom/__init__.py"}
    sources = [path for path in (ROOT / "src").rglob("*.py") if f'"{greenroom.__version__}"' in path.read_text()]
    assert sources == [Path(greenroom.__file__)]


def test_the_changelog_begins_with_this_version() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == greenroom.__version__


def test_the_package_is_typed() -> None:
    assert Path(greenroom.__file__).with_name("py.typed").is_file()


def test_the_command_is_installed() -> None:
    commands = importlib.metadata.entry_points(group="console_scripts", name="greenroom")
    assert callable(next(iter(commands)).load())


def test_every_dependency_of_the_tests_is_locked() -> None:
    pins = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    locked = {normal(name) for name in pins}
    extras = PROJECT["project"]["optional-dependencies"]
    tested = re.search(r"set_up\.sh \$\(VENV\) (\S*dev\S*)", MAKEFILE)
    assert tested is not None
    needed = [*PROJECT["project"]["dependencies"], *(line for name in tested[1].split(",") for line in extras[name])]
    for requirement in needed:
        matched = REQUIREMENT.match(requirement)
        assert matched is not None
        assert normal(matched[1]) in locked, requirement


# Written in pieces, so that this file does not find itself.
ROOTS = ["wo" + "rk", "fa" + "rm", "ro" + "ot", "op" + "t/wheels"]
PRIVATE = re.compile(rf"(?<![\w.$])/(?:{'|'.join(ROOTS)})\b")
SHARED = re.compile(r"\.\./sha" + "red")


def test_no_file_names_a_machine_s_own_paths() -> None:
    found = [
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for file in tracked_files()
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines()
        if PRIVATE.search(line) or SHARED.search(line)
    ]
    assert not found


def documents() -> list[Path]:
    """The README and everything under docs that a person reads."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_documents_name_make_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    named = {
        (document.name, target)
        for document in documents()
        for target in re.findall(r"\bmake ([a-z][a-z-]*)(?=\s|$)", code_of(document.read_text()), re.MULTILINE)
    }
    assert ("README.md", "train") in named
    assert ("README.md", "test") in named
    assert {target for _, target in named} <= targets


def code_of(text: str) -> str:
    """The code blocks and the code spans of a Markdown text, one a line."""
    return "\n".join(fence or span for fence, span in re.findall(r"```\w*\n(.*?)```|`([^`\n]+)`", text, re.DOTALL))


def test_documents_link_to_files_that_exist() -> None:
    broken = [
        f"{document.relative_to(ROOT)}: {target}"
        for document in documents()
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text())
        if "://" not in target and not (document.parent / target).exists()
    ]
    assert not broken


def test_every_target_is_listed_by_help() -> None:
    listing = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    assert {line.split()[1] for line in listing.splitlines() if line.startswith("make ")} == targets


def test_no_console_makes_pictures_of_words_between_colons() -> None:
    """`package.module:factory: …` is a name, and rich knows a factory."""
    found = [
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for file in sorted((ROOT / "src").rglob("*.py"))
        for line in file.read_text(encoding="utf-8").splitlines()
        if re.search(r"\bConsole\((?!.*emoji=False)", line)
    ]
    assert found == []
