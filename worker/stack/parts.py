"""The parts of a stack as values: what is started, how, and how one knows that it works.

`arrange` is called by the `up` command through the supervisor, once the lock is held and what was
left over is gone: only then is it known which ports are free. Starts nothing itself.
"""

import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from worker.errors import StackError
from worker.settings import Settings
from worker.stack import valkey
from worker.stack.home import Home

DRAIN_MARGIN_SECONDS: Final = 10.0
_SERVICE_GRACE_SECONDS: Final = 5.0
_WORKER: Final = (sys.executable, "-m", "worker")
_REACHED_BY: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # looked up, not bound


class Stage(IntEnum):
    """The order of things: the broker is ready before others start; later stages stop first."""

    BROKER = 0
    SERVICE = 1
    WORKER = 2


@dataclass(frozen=True, slots=True)
class Part:
    """One process of the stack.

    `probe` says whether it works; without one the part is given `--ready-fd` and says so itself.
    With `lifeline` it is given `--lifeline-fd` and ends when the supervisor is gone. `folder` is
    where it runs, if not where its starter does.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    stage: Stage = Stage.WORKER
    probe: Callable[[], bool] | None = None
    lifeline: bool = True
    grace_seconds: float = _SERVICE_GRACE_SECONDS
    start_seconds: float = 60.0
    folder: Path | None = None

    def command_line(self, lifeline_fd: int, ready_fd: int | None) -> list[str]:
        """Complete the command with the file descriptors that this part takes."""
        lifeline = ["--lifeline-fd", str(lifeline_fd)] if self.lifeline else []
        ready = [] if ready_fd is None else ["--ready-fd", str(ready_fd)]
        return [*self.command, *lifeline, *ready]


@dataclass(frozen=True, slots=True)
class Plan:
    """All parts, and where they will be found. `notes` are for the user to read."""

    parts: tuple[Part, ...]
    broker_url: str
    flower_url: str | None = None
    simulator_url: str | None = None
    notes: tuple[str, ...] = ()


def needs_simulator(settings: Settings) -> bool:
    """Tell whether calls cannot go anywhere else: no key, and no endpoints of the user's own."""
    fields = Settings.model_fields
    own = (settings.text_endpoints, settings.multimodal_endpoints)
    default = (fields["text_endpoints"].default, fields["multimodal_endpoints"].default)
    key = settings.api_key.get_secret_value() if settings.api_key else ""
    return not key and own == default


def connected(settings: Settings, broker_url: str, simulator_url: str | None) -> Settings:
    """Return the settings under which a process works on an embedded stack."""
    changes: dict[str, object] = {"broker_url": SecretStr(broker_url)}
    if simulator_url is not None:
        changes |= {
            "text_endpoints": (simulator_url,),
            "multimodal_endpoints": (simulator_url,),
            "api_key": SecretStr("simulator"),
        }
    return settings.model_copy(update=changes)


def arrange(
    settings: Settings,
    *,
    workers: int | None = None,
    flower: bool = True,
    simulator: bool | None = None,
) -> Plan:
    """Choose ports that are free now, and plan the stack.

    Raises StackError where there is none, SettingsError where Flower would be open to others.
    Defaults: as many workers as the settings say; the simulator where nothing else can answer.
    """
    if flower:
        settings.check_flower()
    wanted = settings.flower_port
    port = _port(settings.flower_address, wanted) if flower else None
    moved = wanted != 0 and port is not None and port != wanted
    simulated = needs_simulator(settings) if simulator is None else simulator
    return plan(
        settings,
        workers=settings.workers if workers is None else workers,
        flower_port=port,
        simulator_port=_free_port("127.0.0.1") if simulated else None,
        notes=(f"port {wanted} is taken: Flower listens on port {port}",) if moved else (),
    )


def plan(
    settings: Settings,
    *,
    workers: int,
    flower_port: int | None,
    simulator_port: int | None,
    notes: tuple[str, ...] = (),
) -> Plan:
    """Describe the stack of these settings on these ports; None leaves a part out. Pure."""
    home = Home(settings.home)
    broker_url = valkey.url(home)
    simulator_url = None if simulator_port is None else _http("127.0.0.1", simulator_port)
    seen = connected(settings, broker_url, simulator_url)
    parts = [broker(home)]
    if simulator_port is not None:
        parts.append(_simulator(seen, simulator_port))
    if flower_port is not None:
        parts.append(_flower(seen, flower_port))
    parts.extend(_worker(seen, number) for number in range(1, workers + 1))
    address = _reached_by(settings.flower_address)
    flower_url = None if flower_port is None else _http(address, flower_port)
    return Plan(tuple(parts), broker_url, flower_url, simulator_url, notes)


def broker(home: Home) -> Part:
    """Valkey. It is given none of our environment: it needs no key."""
    return Part(
        name="valkey",
        command=valkey.command(home),
        environment={},
        stage=Stage.BROKER,
        probe=partial(valkey.answers, home),
        lifeline=False,
        grace_seconds=valkey.GRACE_SECONDS,
    )


def _simulator(settings: Settings, port: int) -> Part:
    return Part(
        name="simulator",
        command=(*_WORKER, "simulate", "--port", str(port), "--latency=0.8", "--sigma=0.6"),
        environment=settings.environment(),
        stage=Stage.SERVICE,
        probe=partial(_listens, "127.0.0.1", port),
    )


def _flower(settings: Settings, port: int) -> Part:
    return Part(
        name="flower",
        command=(*_WORKER, "flower"),
        environment=settings.model_copy(update={"flower_port": port}).environment(),
        stage=Stage.SERVICE,
        probe=partial(_listens, _reached_by(settings.flower_address), port),
    )


def _worker(settings: Settings, number: int) -> Part:
    return Part(
        name=f"worker-{number}",
        command=(*_WORKER, "worker", "--name", f"embedded-{number}"),
        environment=settings.environment(),
        grace_seconds=settings.drain_seconds + DRAIN_MARGIN_SECONDS,
    )


def _listens(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return False
    return True


def _port(address: str, wanted: int) -> int:
    """Return the wanted port where it is free, else any."""
    try:
        return _bind(address, wanted)
    except OSError:
        return _free_port(address)


def _free_port(address: str) -> int:
    try:
        return _bind(address, 0)
    except OSError as error:
        raise StackError(
            f"no port can be opened on {address!r} ({error.strerror}): "
            "set CHATQUEUE_FLOWER_ADDRESS to an address of this machine, such as 127.0.0.1"
        ) from error


def _bind(address: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        # As a server does it: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address, port))
        number: int = probe.getsockname()[1]
        return number


def _reached_by(address: str) -> str:
    return _REACHED_BY.get(address, address)


def _http(address: str, port: int) -> str:
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
