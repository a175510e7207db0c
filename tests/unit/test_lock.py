import re
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "constraints.txt"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = [line for line in LOCK.read_text().splitlines() if not line.startswith("#")]
PINS = dict(line.split("==") for line in LINES)


def _needed() -> dict[str, Distribution]:
    """Every distribution that `.[dev]` brings, found from the requirements of what is installed."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    ours = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    ours += PROJECT["optional-dependencies"]["postgres"]
    todo = _named(ours, "")
    while todo:
        name, extra = one = todo.pop()
        if one in seen:
            continue
        seen.add(one)
        found[name] = distribution(name)
        todo += _named(found[name].requires or (), extra)
    return found


def _named(requirements: Iterable[str], extra: str, **there: str) -> list[tuple[str, str]]:
    """The names and extras that these requirements ask for here, or elsewhere."""
    environment = {"extra": extra, **there}
    return [
        (str(canonicalize_name(one.name)), wanted)
        for one in map(Requirement, requirements)
        if one.name != "chatqueue" and (not one.marker or one.marker.evaluate(environment))
        for wanted in ("", *one.extras)
    ]


def test_the_lock_holds_names_and_versions_only_in_order() -> None:
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9A-Za-z.+!]*", line) for line in LINES)
    assert sorted(PINS) == list(PINS)
    assert "://" not in LOCK.read_text()


def test_whatever_we_need_is_pinned_and_installed_at_its_pin() -> None:
    installed = {name: found.version for name, found in _needed().items()}
    assert {name: PINS.get(name) for name in installed} == installed


def test_nothing_is_pinned_that_nobody_needs() -> None:
    needed = _needed()
    oldest = {"python_full_version": "3.11.0", "python_version": "3.11"}
    elsewhere = {
        name for found in needed.values() for name, _ in _named(found.requires or (), "", **oldest)
    }
    assert set(PINS) - set(needed) - elsewhere == set()
