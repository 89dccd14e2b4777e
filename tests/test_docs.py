"""The documentation's own code runs."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import greenroom
from greenroom.cli import main
from greenroom.commands.live import COMMANDS
from greenroom.envs import check_environment, make
from greenroom.errors import EXIT_CODES, UserError

ROOT = Path(__file__).resolve().parents[1]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the documented `shop.py` and `shops.py`, from where they can be imported."""
    for name, kind in (("shop", "class Shop("), ("shops", "class Shops:")):
        source = next(block for block in blocks(ROOT / "docs" / "environments.md", "python") if kind in block)
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_documented_environment_keeps_every_contract(shop: Path) -> None:
    source = next(b for b in blocks(ROOT / "docs" / "environments.md", "python") if "check_environment" in b)
    exec(compile(source, "environments.md", "exec"), {})


def test_the_documented_environment_trains(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "shop:Shop", "--env.shelf", "30", "--total-steps", "4096", "--run-dir", "run", "--quiet"]
    assert main([*words, "--eval-episodes", "4", "--stage", "inline"]) == 0
    assert "waste" in capsys.readouterr().out  # the declared signal is in the final table


def test_the_documented_tensors_train(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_environment(make("shops:Shops", num_envs=4, kwargs={"shelf": 30}, say=lambda line: None))
    assert main(["list", "shops:Shops"]) == 0
    assert "--env.shelf" in capsys.readouterr().out
    words = ["train", "shops:Shops", "--env.shelf", "30", "--total-steps", "65536", "--run-dir", "run"]
    assert main([*words, "--eval-episodes", "4"]) == 0
    told = capsys.readouterr()
    assert "stage: device (written as batched tensor code)" in told.err and "waste" in told.out
    assert main(["evaluate", "run", "--episodes", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["length_mean"] == 50.0


def test_the_documented_loop_runs(
    shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = next(b for b in blocks(ROOT / "docs" / "environments.md", "python") if "greenroom.train(run)" in b)
    shorter = source.replace(
        'greenroom.preset(None, "shop:Shop")',
        '__import__("dataclasses").replace(greenroom.preset(None, "shop:Shop"), total_steps=2048)',
    )
    assert shorter != source
    exec(compile(shorter, "environments.md", "exec"), {})
    assert "2048 tensor(" in capsys.readouterr().out


def test_the_documented_use_of_a_policy_works(shop: Path) -> None:
    source = next(b for b in blocks(ROOT / "docs" / "environments.md", "python") if "load_policy" in b)
    words = ["train", "shop:Shop", "--total-steps", "2048", "--stage", "inline", "--eval-episodes", "2", "--quiet"]
    assert main([*words, "--run-dir", "run", "--eval-every", "1024"]) == 0
    names: dict[str, Any] = {}
    exec(compile(source.replace("runs/shop-Shop-ppo-s0-…", "run"), "environments.md", "exec"), names)
    assert names["truncated"] and names["environment"].days == 50


def test_the_documented_use_of_a_mask_works(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tight", raising=False)
    source = next(b for b in blocks(ROOT / "docs" / "environments.md", "python") if "class TightShop(" in b)
    (shop / "tight.py").write_text(source)
    words = ["train", "tight:TightShop", "--total-steps", "2048", "--stage", "inline", "--eval-episodes", "2"]
    assert main([*words, "--run-dir", "masked", "--quiet"]) == 0
    policy = greenroom.load_policy("masked")[1]
    seen = {"obs": torch.zeros(1, 1), "action_mask": torch.eye(11)[[2]]}
    assert policy(seen, policy.initial_state(1))[0].item() == 2
    with pytest.raises(UserError, match="looks at a dict of obs"):
        policy(torch.zeros(1, 1), policy.initial_state(1))


def test_a_run_s_folder_holds_what_the_page_says(shop: Path) -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    table = page.partition("## What is in a run's folder")[2].partition("## ")[0]
    named = {name.strip("/") for name in re.findall(r"`([\w.-]+(?:\.\w+|/))`", table)}
    words = ["train", "shop:Shop", "--total-steps", "2048", "--stage", "inline", "--eval-episodes", "2", "--quiet"]
    assert main([*words, "--run-dir", "run", "--eval-every", "1024"]) == 0
    assert {path.name for path in (shop / "run").iterdir()} - {"train.lock"} <= named


def test_the_documented_exit_codes_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    documented = dict(re.findall(r"^\| (\d+) \| (.*) \|$", page, re.MULTILINE))
    assert documented == {str(int(code)): meaning for code, meaning in EXIT_CODES.items()}


def test_every_command_for_a_live_run_is_documented() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert all(f"greenroom {name} RUN" in page for name in COMMANDS)
