"""The wheel, away from the repository: it brings all that it needs, the migrations too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PIP = (sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "--no-input")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where a wheel of this tree is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    wheels = ["wheel", "--no-deps", "--wheel-dir", str(folder / "dist"), str(REPOSITORY)]
    subprocess.run([*PIP, *wheels], check=True, cwd=folder, timeout=150)
    (wheel,) = (folder / "dist").glob("chatqueue-*-py3-none-any.whl")
    target = folder / "site"
    install = ["install", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run([*PIP, *install], check=True, cwd=folder, timeout=60)
    return target


def run(installed: Path, folder: Path, *words: str) -> str:
    """Run Python on the installed package, before whatever else is on its path."""
    environment = os.environ | {
        "PYTHONPATH": str(installed),
        "CHATQUEUE_HOME": str(folder / "home"),
    }
    done = subprocess.run(
        [sys.executable, *words],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_installed_command_migrates_a_new_database(installed: Path, tmp_path: Path) -> None:
    command = str(installed / "bin" / "chatqueue")
    assert "the database went from schema none to 0" in run(installed, tmp_path, command, "migrate")
    assert "already" in run(installed, tmp_path, command, "migrate")


def test_the_installed_package_is_imported_and_can_store_a_job(
    installed: Path, tmp_path: Path
) -> None:
    program = (
        "import worker; from worker import Client\n"
        "with Client() as client:\n"
        "    body = {'model': 'gpt-5.1', 'messages': [{'role': 'user', 'content': 'Hi'}]}\n"
        "    print(client.submit(body).state, worker.__file__)\n"
    )
    state, place = run(installed, tmp_path, "-c", program).split()
    assert state == "queued"
    assert Path(place).is_relative_to(installed)


def test_the_wheel_has_its_licence_types_and_no_test(installed: Path) -> None:
    names = {str(path.relative_to(installed)) for path in installed.rglob("*")}
    assert "worker/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests", "migrations", "ops")) for name in names)
