"""One proof, from the first process to the verdict: `prove` is all there is to call.

Everything is made for it and gone after it, however it ends: processes, the scratch database, names
on a user's broker. The folder of logs stays where there was a breach, or where it is to be kept.
"""

import dataclasses
import io
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from worker.batches import stream_results
from worker.client import Client
from worker.errors import SettingsError
from worker.jobs.states import OPEN
from worker.prove.places import (
    BrokerPlace,
    EmbeddedBroker,
    Place,
    PostgresPlace,
    RemoteBroker,
    SqlitePlace,
)
from worker.prove.plan import (
    INTERACTIVE_SLOTS,
    LEASE_SECONDS,
    SLOTS,
    Options,
    Plan,
    Trouble,
    make_plan,
)
from worker.prove.staff import POLL_SECONDS, SimulatorProcess, Staff
from worker.prove.turmoil import Happening, Stage, Turmoil
from worker.prove.verdict import Answered, Evidence, Handed, Lost, Verdict, judge
from worker.prove.watch import Sample, Watch, recovery_seconds
from worker.prove.workload import Workload
from worker.queue.app import create_app
from worker.queue.bell import Bell
from worker.settings import Settings
from worker.simulator.ledger import Call
from worker.simulator.service import request_id
from worker.stack.home import Home
from worker.store import schema
from worker.store.engine import Database
from worker.store.scratch import Loss, install_audit, read_books

SETTLE_SECONDS: Final = 180.0
"""The work must have ended so long after the turmoil."""

DRAIN_SECONDS: Final = 1.0
_DISMISS_SECONDS: Final = 30.0
_SIGMA: Final = 0.5
_NAME: Final = "chatqueue-prove"


@dataclass(frozen=True, slots=True)
class Recovery:
    """A kind of trouble: how often it came, and the longest it took until work went on after it.

    `seconds` is None where no work was left by which that could be seen.
    """

    kind: Trouble
    times: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Proof:
    """What came of it. `folder` has the logs, where they were kept; `seconds` is all it took."""

    options: Options
    verdict: Verdict
    recoveries: tuple[Recovery, ...]
    seconds: float
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class Where:
    """A user's servers; None: scratch ones of our own."""

    database_url: str | None = None
    broker_url: str | None = None


def prove(options: Options, where: Where, *, keep: bool, tell: Callable[[str], None]) -> Proof:
    """Run a scenario and judge what came of it. `tell` is called with each thing that happens.

    Raises DatabaseError, BrokerError, StackError, SettingsError: it could not be run.
    """
    began = time.monotonic()
    with _folder(keep=keep) as folder:
        plan = make_plan(options)
        with (folder / "events.log").open("w", encoding="utf-8") as log:

            def note(text: str) -> None:
                log.write(text + "\n")
                log.flush()
                tell(text)

            evidence, happenings, samples = _run(plan, where, Home(folder / "home"), note)
        verdict = judge(evidence)
        proof = Proof(
            options, verdict, tuple(_recoveries(happenings, samples)), time.monotonic() - began
        )
        if keep or not verdict.holds:
            _write_evidence(folder, evidence)
            proof = dataclasses.replace(proof, folder=folder)
        return proof


@contextmanager
def _folder(*, keep: bool) -> Iterator[Path]:
    """A folder that goes at the end, unless it is to be kept or `evidence.json` was put there."""
    folder = Path(tempfile.mkdtemp(prefix=f"{_NAME}-"))
    try:
        yield folder
    finally:
        if not keep and not (folder / "evidence.json").exists():
            shutil.rmtree(folder, ignore_errors=True)


# --- the run --------------------------------------------------------------------------------------


def _run(
    plan: Plan, where: Where, home: Home, tell: Callable[[str], None]
) -> tuple[Evidence, list[Happening], list[Sample]]:
    home.prepare()
    tell(f"seed {plan.options.seed}: {plan.jobs} jobs, {len(plan.events)} troubles")
    with _stage(plan, where, home) as stage:

        def note(text: str) -> None:
            tell(f"{stage.now():6.1f} s  {text}")

        workload = Workload(stage.client, stage.now, note)
        turmoil = Turmoil(stage, plan.options.seed, note)
        with Watch(stage.client.database, stage.now) as watch:
            with ThreadPoolExecutor(1, thread_name_prefix="workload") as beside:
                handing_in = beside.submit(workload.run, plan.handovers)
                try:
                    turmoil.run(plan.events)
                    handing_in.result()
                finally:
                    workload.stop()
            note(f"the turmoil is over: {watch.done} of {plan.jobs} jobs ended")
            unfinished = _settle(stage)
            note(f"the work is {'not ' if unfinished else ''}over")
            stage.staff.dismiss(_DISMISS_SECONDS)
        evidence = _evidence(stage, workload, watch, unfinished, plan.options.seed)
        return evidence, turmoil.happenings, watch.samples


@contextmanager
def _stage(plan: Plan, where: Where, home: Home) -> Iterator[Stage]:
    """Everything that a proof acts upon, up and running; gone at the end, however it comes."""
    token = secrets.token_hex(4)
    prefix = f"{_NAME}-{token}"
    names = [f"prove-{token}-{number}" for number in range(1, plan.options.workers + 1)]
    clock = Clock()
    with ExitStack() as undo:
        lifeline = undo.enter_context(_lifeline())
        place = undo.enter_context(_database(where, home, token))
        broker = undo.enter_context(_broker(where, home, prefix, names, lifeline))
        simulator = undo.enter_context(SimulatorProcess(home, plan.options.seed, lifeline))
        simulator.behave(latency_seconds=plan.latency_seconds, latency_sigma=_SIGMA)
        settings = _settings(home, prefix, simulator.url, place.url, broker.url)
        with Database(settings.sqlalchemy_url) as database:
            schema.migrate(database)
            install_audit(database)
        seen = _settings(home, prefix, simulator.url, place.workers_url, broker.workers_url)
        client = undo.enter_context(Client(settings))
        staff = undo.enter_context(Staff(home, seen, names, lifeline, clock.now))
        staff.start_all()
        clock.restart()
        bell = Bell(create_app(settings))
        yield Stage(staff, simulator, place, broker, client, bell, clock.now)


class Clock:
    """Seconds since the start, which no jump of any other clock moves."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def now(self) -> float:
        """Read it."""
        return time.monotonic() - self._began

    def restart(self) -> None:
        """Have the start be now."""
        self._began = time.monotonic()


@contextmanager
def _lifeline() -> Iterator[int]:
    """The end of a pipe that tells every process we start when this one is gone."""
    read_end, write_end = os.pipe()
    try:
        yield read_end
    finally:
        os.close(write_end)
        os.close(read_end)


def _database(where: Where, home: Home, token: str) -> Place:
    if where.database_url is None:
        return SqlitePlace(home)
    settings = Settings.apart(database_url=where.database_url)
    if not settings.sqlalchemy_url.startswith("postgresql"):
        raise SettingsError(["--database-url must be postgresql://…; without it SQLite is used"])
    return PostgresPlace(settings.sqlalchemy_url, f"chatqueue_prove_{token}")


def _broker(
    where: Where, home: Home, prefix: str, names: list[str], lifeline_fd: int
) -> BrokerPlace:
    if where.broker_url is None:
        return EmbeddedBroker(home, lifeline_fd)
    return RemoteBroker(where.broker_url, prefix, names)


def _settings(
    home: Home, prefix: str, simulator_url: str, database_url: str, broker_url: str
) -> Settings:
    """Settings under which nothing but trouble ends a job, and recoveries are soon seen."""
    return Settings.apart(
        home=home.path,
        api_key="simulator",
        database_url=database_url,
        broker_url=broker_url,
        queue_prefix=prefix,
        text_endpoints=(simulator_url,),
        multimodal_endpoints=(simulator_url,),
        max_in_flight=SLOTS,
        interactive_slots=INTERACTIVE_SLOTS,
        lease_seconds=LEASE_SECONDS,
        drain_seconds=DRAIN_SECONDS,
        max_attempts=100,
        backoff_cap_seconds=2.0,
        shift_seconds=10.0,
        log_format="json",
    )


def _settle(stage: Stage) -> Mapping[str, int]:
    """Wait for the end of all work; return what is left when its time is over, by state."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        stage.staff.look_after()
        counts = stage.client.count()
        left = {str(state): count for state, count in counts.items() if state in OPEN and count}
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(POLL_SECONDS)


# --- the evidence ---------------------------------------------------------------------------------


def _evidence(
    stage: Stage, workload: Workload, watch: Watch, unfinished: Mapping[str, int], seed: int
) -> Evidence:
    database = stage.client.database
    return Evidence(
        books=read_books(database),
        calls=tuple(_answered(call, seed) for call in stage.simulator.calls()),
        postings=tuple(stage.staff.postings),
        losses=tuple(Lost(at, *_of(loss)) for at, loss in watch.losses()),
        batches=tuple(
            Handed(one.id, one.custom_ids, _exported(database, one.id), one.was_cancelled)
            for one in workload.batches
        ),
        singles=tuple(workload.singles),
        unknown_outcomes=stage.client.unknown_outcomes(),
        unfinished=unfinished,
    )


def _of(loss: Loss) -> tuple[str, int, str, str | None]:
    return loss.job_id, loss.fence, loss.worker_id, loss.error_code


def _answered(call: Call, seed: int) -> Answered:
    return Answered(
        call.number,
        call.idempotency_key,
        request_id(seed, call.number),
        call.outcome,
        billed=call.tokens > 0,
    )


def _exported(database: Database, batch_id: str) -> tuple[str, ...]:
    text = io.StringIO()
    stream_results(database, batch_id, text)
    return tuple(json.loads(line)["custom_id"] for line in text.getvalue().splitlines())


def _recoveries(happenings: list[Happening], samples: list[Sample]) -> Iterator[Recovery]:
    for kind in Trouble:
        own = [one for one in happenings if one.event.kind is kind]
        times = [recovery_seconds(samples, one.over_at, one.killed) for one in own]
        yield Recovery(kind, len(own), max((t for t in times if t is not None), default=None))


def _write_evidence(folder: Path, evidence: Evidence) -> None:
    (folder / "evidence.json").write_bytes(
        msgspec.json.format(msgspec.json.encode(_plain(evidence)))
    )


def _plain(evidence: Evidence) -> dict[str, Any]:
    return dataclasses.asdict(evidence)
