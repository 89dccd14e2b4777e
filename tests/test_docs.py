"""The documentation's own code runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from greenroom.cli import main
from greenroom.commands.live import COMMANDS
from greenroom.errors import EXIT_CODES

ROOT = Path(__file__).resolve().parents[1]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the documented `shop.py`, from where it can be imported."""
    source = next(block for block in blocks(ROOT / "docs" / "environments.md", "python") if "class Shop" in block)
    (tmp_path / "shop.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "shop", raising=False)
    return tmp_path


def test_the_documented_environment_keeps_every_contract(shop: Path) -> None:
    source = next(b for b in blocks(ROOT / "docs" / "environments.md", "python") if "check_environment" in b)
    exec(compile(source, "environments.md", "exec"), {})


def test_the_documented_environment_trains(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "shop:Shop", "--env.shelf", "30", "--total-steps", "4096", "--run-dir", "run", "--quiet"]
    assert main([*words, "--eval-episodes", "4", "--stage", "inline"]) == 0
    assert "waste" in capsys.readouterr().out  # the declared signal is in the final table


def test_the_documented_loop_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    source = next(b for b in blocks(ROOT / "docs" / "environments.md", "python") if "greenroom.train(run)" in b)
    shorter = source.replace(
        'greenroom.preset(None, "CartPole-v1")',
        '__import__("dataclasses").replace(greenroom.preset(None, "CartPole-v1"), total_steps=2048)',
    )
    assert shorter != source
    exec(compile(shorter, "environments.md", "exec"), {})
    assert "2048 tensor(" in capsys.readouterr().out


def test_the_documented_exit_codes_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    documented = dict(re.findall(r"^\| (\d+) \| (.*) \|$", page, re.MULTILINE))
    assert documented == {str(int(code)): meaning for code, meaning in EXIT_CODES.items()}


def test_every_command_for_a_live_run_is_documented() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert all(f"greenroom {name} RUN" in page for name in COMMANDS)
