"""Kills workers at random moments and counts what became of the jobs, in books of its own.

    python ops/trials/kill.py --seed 7
    python ops/trials/kill.py --seed 7 --database-url postgresql://… --broker-url redis://…

It knows chatqueue by its commands and settings only, so no fault of the package can excuse itself
here. The upstream is a small server of this file, written from the API's reference: it remembers
every request by the marker in its prompt, and what it sent back. The databases given must be empty
and nobody else's; without --broker-url the embedded stack (`chatqueue up`) is tried.

A strike on a worker is a SIGKILL, a SIGSTOP that outlasts its lease, or a SIGTERM; the embedded
stack is also struck as a whole, and a submission is killed before the one that counts. Exit
status 1, with the evidence, where a job is missing or there twice, an answer is not one that was
sent, or a call was made twice that no strike explains or the ledger does not show.
"""

import argparse
import asyncio
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

PROGRAM = (sys.executable, "-m", "worker")
KEY = "trial-key-5d20"
TAKEN_OVER_SECONDS = 6.0
"""A lease that has run out is noticed within this time: a freeze must outlast it."""


# --- the upstream ---------------------------------------------------------------------------------


@dataclass
class Request:
    """One request as the upstream saw it.

    `answered`: a whole answer was handed to the network, or is paid for though its client had left.
    """

    serial: int
    marker: str
    key: str
    is_open: bool = True
    answered: bool = False


class Upstream:
    """The API, on a loopback port, with a memory of every request.

    `broken_off`: how many it did not answer, or not to the end, so that nobody can know the cost.
    """

    def __init__(self, seed: int, latency: float, faults: float) -> None:
        self._rng = random.Random(seed)  # noqa: S311  # chance that can be repeated
        self._latency = latency
        self._faults = faults
        self.requests: list[Request] = []
        self.strange: list[str] = []
        self.broken_off = 0
        self._loop = asyncio.new_event_loop()
        serving = asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 22)
        self._server = self._loop.run_until_complete(serving)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    @property
    def open(self) -> int:
        """Requests that wait for their answer now."""
        return sum(one.is_open for one in list(self.requests))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._one(reader, writer):
                pass
        with suppress(ConnectionError):
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Take one request and answer it; tell whether the connection is still of use."""
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines if line)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        raw = await reader.readexactly(int(headers.get("content-length", "0")))
        if not first.startswith("POST /v1/chat/completions "):
            await _reply(writer, 404, {"error": {"message": "no such path"}})
            return True
        body = json.loads(raw)
        if headers.get("authorization") != f"Bearer {KEY}":
            self.strange.append(f"a request with another key: {headers.get('authorization')}")
        marker = body["messages"][-1]["content"]
        request = Request(len(self.requests), marker, headers.get("idempotency-key", ""))
        self.requests.append(request)
        try:
            return await self._answer(request, body, reader, writer)
        finally:
            request.is_open = False

    async def _answer(
        self,
        request: Request,
        body: dict[str, Any],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        seconds = self._latency * self._rng.lognormvariate(0, 0.7)
        fault = self._rng.choice(FAULTS) if self._rng.random() < self._faults else ""
        gone = asyncio.ensure_future(reader.read(1))
        done, _ = await asyncio.wait({gone}, timeout=seconds)
        if done:
            request.answered = not fault
            return False
        gone.cancel()
        with suppress(asyncio.CancelledError):
            await gone
        if fault == "hang up":
            self.broken_off += 1
            return False
        if fault:
            await _reply(writer, int(fault), {"error": {"message": "try again", "code": fault}})
            return True
        if body.get("stream"):
            cut = self._rng.random() < 0.05
            self.broken_off += cut
            whole = await _stream(writer, body["model"], request, cut=cut)
        else:
            await _reply(writer, 200, _completion(body["model"], request))
            whole = True
        request.answered = whole
        return whole


FAULTS = ("500", "503", "hang up")


def _content(request: Request) -> str:
    return f"{request.marker} #{request.serial}"


def _usage(request: Request) -> dict[str, int]:
    prompt, completion = 20, 5 + request.serial % 11
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def _completion(model: str, request: Request) -> dict[str, Any]:
    message = {"role": "assistant", "content": _content(request)}
    return {
        "id": f"chatcmpl-{request.serial}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": _usage(request),
    }


async def _reply(writer: asyncio.StreamWriter, status: int, value: dict[str, Any]) -> None:
    body = json.dumps(value).encode()
    wait = "retry-after: 1\r\n" if status == 503 else ""
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{wait}"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()


async def _stream(writer: asyncio.StreamWriter, model: str, request: Request, *, cut: bool) -> bool:
    """Send the answer word by word; with `cut` hang up in the middle. Tell whether it was whole."""
    head = "HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    writer.write(head.encode())
    frame = {"id": f"chatcmpl-{request.serial}", "object": "chat.completion.chunk", "model": model}
    marker, serial = _content(request).split(" ")
    deltas: list[tuple[dict[str, str], str | None]] = [
        ({"role": "assistant", "content": marker}, None),
        ({"content": f" {serial}"}, None),
        ({}, "stop"),
    ]
    for delta, finish in deltas:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        _event(writer, json.dumps(frame | {"choices": [choice]}))
        await writer.drain()
        await asyncio.sleep(0.02)
        if cut:
            return False
    _event(writer, json.dumps(frame | {"choices": [], "usage": _usage(request)}))
    _event(writer, "[DONE]")
    writer.write(b"0\r\n\r\n")
    await writer.drain()
    return True


def _event(writer: asyncio.StreamWriter, data: str) -> None:
    event = f"data: {data}\n\n".encode()
    writer.write(b"%x\r\n%b\r\n" % (len(event), event))


# --- the product, as a user has it ----------------------------------------------------------------


@dataclass
class Product:
    """The commands, the settings they run under, and the workers that run now."""

    folder: Path
    variables: dict[str, str]
    embedded: bool
    workers: int
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def run(self, *words: str) -> str:
        """Run a command that must succeed; return what it printed."""
        done = subprocess.run(
            [*PROGRAM, *words],
            env=self.variables,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"chatqueue {' '.join(words)}: {done.returncode}\n{done.stderr}")
        return done.stdout

    def json(self, *words: str) -> Any:
        """Run a command that prints JSON."""
        return json.loads(self.run(*words, "--json"))

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Start a command and leave it running; its output goes to a log."""
        with (self.folder / f"{words[0]}.log").open("ab") as log:
            process = subprocess.Popen(
                [*PROGRAM, *words], env=self.variables, cwd=self.folder, stdout=log, stderr=log
            )
        self.started.append(process)
        return process

    def staff(self) -> None:
        """Start what is not running: the stack, or the workers that are missing."""
        alive = [one for one in self.started if one.poll() is None]
        if self.embedded:
            if not alive:
                self.start("up", "--no-flower", "--workers", str(self.workers))
            return
        for number in range(self.workers - len(alive)):
            self.start("worker", "--name", f"w{len(self.started)}-{number}")

    def worker_processes(self) -> list[psutil.Process]:
        """The workers that run now."""
        alive = [psutil.Process(one.pid) for one in self.started if one.poll() is None]
        if not self.embedded:
            return alive
        children = [child for up in alive for child in up.children()]
        return [one for one in children if "--name" in _words(one)]

    def stop(self) -> None:
        """End everything that was started and still runs."""
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self.started:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


# --- the strikes ----------------------------------------------------------------------------------


@dataclass
class Strikes:
    """What was done to the workers, and how many calls that can have made twice at the most."""

    slots: int
    kinds: Counter[str] = field(default_factory=Counter)
    open_then: int = 0
    may_repeat: int = 0

    def note(self, kind: str, workers: int, open_now: int) -> None:
        """Count a strike on so many workers: their open calls, and answers not yet recorded."""
        self.kinds[kind] += 1
        self.open_then += min(open_now, workers * self.slots)
        self.may_repeat += min(open_now, workers * self.slots) + workers * self.slots


class Assailant:
    """Strikes at random until its time is over, and staffs again after each strike."""

    def __init__(self, product: Product, upstream: Upstream, options: argparse.Namespace) -> None:
        self._product = product
        self._upstream = upstream
        self._lease = options.lease
        self._every = options.every
        self._rng = random.Random(options.seed + 1)  # noqa: S311  # as above
        self._frozen: list[tuple[float, psutil.Process]] = []
        self.strikes = Strikes(options.slots)

    def rage(self, seconds: float) -> None:
        """Strike for so long; leave nothing frozen, and everything running."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._wait(min(end, time.monotonic() + self._rng.expovariate(1 / self._every)))
            if self._rng.random() < 0.8:  # else at any moment: before the first call, too
                self._wait(end, until_open=True)
            with suppress(psutil.NoSuchProcess):
                self._strike()
            if self._rng.random() < 0.7:
                self._product.staff()
        while self._frozen:
            self._thaw()
            time.sleep(0.05)
        self._product.staff()

    def _wait(self, deadline: float, *, until_open: bool = False) -> None:
        """Wait for a time, or only until calls are open, which is when a strike tells most.

        For that all must run: a stack that was struck while it started has ended.
        """
        while time.monotonic() < deadline and not (until_open and self._upstream.open):
            self._thaw()
            if until_open:
                self._product.staff()
            time.sleep(0.02)

    def _strike(self) -> None:
        frozen = {process for _, process in self._frozen}
        workers = [one for one in self._product.worker_processes() if one not in frozen]
        if self._product.embedded and workers and self._rng.random() < 0.15:
            self._note("whole stack", len(workers))
            for process in self._product.started:
                process.kill()
                process.wait()
        elif workers:
            self._hit(self._rng.choice(workers), self._rng.random())

    def _hit(self, victim: psutil.Process, chance: float) -> None:
        if chance < 0.65:
            self._note("kill", 1)
            victim.kill()
        elif chance < 0.85:
            self._note("freeze", 1)
            victim.suspend()
            until = time.monotonic() + self._lease + TAKEN_OVER_SECONDS * self._rng.random()
            self._frozen.append((until, victim))
        else:
            self._note("term", 1)
            victim.terminate()

    def _note(self, kind: str, workers: int) -> None:
        self.strikes.note(kind, workers, self._upstream.open)

    def _thaw(self) -> None:
        now = time.monotonic()
        for until, process in self._frozen:
            if until <= now:
                with suppress(psutil.NoSuchProcess):
                    process.resume()
        self._frozen = [one for one in self._frozen if one[0] > now]


# --- the trial ------------------------------------------------------------------------------------


def submit(product: Product, jobs: int, rng: random.Random) -> str:
    """Hand in a file: once killed on the way, then again under the same key. Return its batch."""
    path = product.folder / "requests.jsonl"
    with path.open("w") as file:
        for number in range(jobs):
            messages = [{"role": "user", "content": f"marker-{number:06}"}]
            body = {"model": "gpt-5.1", "messages": messages, "stream": number % 4 == 0}
            line = {"custom_id": f"c-{number}", "method": "POST", "url": "/v1/chat/completions"}
            file.write(json.dumps(line | {"body": body}) + "\n")
    hasty = product.start("submit", str(path), "--key", "trial")
    with suppress(subprocess.TimeoutExpired):
        hasty.wait(rng.uniform(0.2, 2.0))
    hasty.kill()
    hasty.wait()
    return str(product.json("submit", str(path), "--key", "trial")["id"])


def await_end(product: Product, batch: str, seconds: float) -> bool:
    """Wait until a batch is finished, with all workers running; tell whether it is."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        product.staff()  # a stack of which a part was struck while it started has ended
        if product.json("status", batch)["state"] == "completed":
            return True
        time.sleep(1)
    return False


@dataclass
class Books:
    """What the product says of a batch, read by its commands."""

    status: dict[str, Any]
    everything: dict[str, Any]
    lines: list[dict[str, Any]]
    job_ids: dict[str, str]

    @classmethod
    def read(cls, product: Product, batch: str, jobs: int) -> "Books":
        """Export the results and errors, and look at the batch and its jobs."""
        names = ("results.jsonl", "errors.jsonl")
        product.run("results", batch, "-o", names[0], "--errors", names[1])
        found = [product.folder / name for name in names]
        texts = [path.read_text() for path in found if path.exists()]
        listed = product.json("jobs", "--batch", batch, "--limit", str(jobs + 1))
        return cls(
            product.json("status", batch),
            product.json("status"),
            [json.loads(line) for text in texts for line in text.splitlines()],
            {one["custom_id"]: one["id"] for one in listed},
        )


def breaches(books: Books, upstream: Upstream, jobs: int) -> Iterator[str]:
    """Compare what the product hands out with what the upstream sent; yield what is wrong."""
    seen = Counter(line["custom_id"] for line in books.lines)
    wanted = {f"c-{number}" for number in range(jobs)}
    yield from (f"lost: {one}" for one in sorted(wanted - seen.keys()))
    yield from (f"never handed in: {one}" for one in sorted(seen.keys() - wanted))
    yield from (f"in the results {n} times: {one}" for one, n in seen.items() if n > 1)
    if len(books.everything["batches"]) != 1:
        yield f"one file became {len(books.everything['batches'])} batches"
    status = books.status
    if status["succeeded"] != jobs or status["total"] != jobs:
        yield f"the batch counts {status['succeeded']} of {status['total']} succeeded"
    sent = {_content(one): one for one in upstream.requests}
    tokens = 0
    for line in books.lines:
        marker = "marker-{:06}".format(int(line["custom_id"].removeprefix("c-")))
        body = (line["response"] or {}).get("body", {})
        said = body["choices"][0]["message"]["content"] if "choices" in body else None
        if said is None or said not in sent or sent[said].marker != marker:
            yield f"{line['custom_id']} has an answer that it was not sent: {json.dumps(line)}"
        else:
            tokens += body["usage"]["completion_tokens"]
            if body["usage"] != _usage(sent[said]):
                yield f"{line['custom_id']} has other tokens than it was sent: {body['usage']}"
    if tokens != status["completion_tokens"]:
        yield f"the batch counts {status['completion_tokens']} tokens, its results {tokens}"
    yield from _wrong_keys(upstream)
    yield from upstream.strange


def _wrong_keys(upstream: Upstream) -> Iterator[str]:
    keys, markers = defaultdict(set), defaultdict(set)
    for one in upstream.requests:
        keys[one.marker].add(one.key)
        markers[one.key].add(one.marker)
    yield from (f"{m} was sent under {sorted(k)}" for m, k in keys.items() if len(k) != 1)
    yield from (f"the key {k!r} names {len(m)} jobs" for k, m in markers.items() if len(m) != 1)


def unmarked(
    product: Product, books: Books, upstream: Upstream, strikes: Strikes, rng: random.Random
) -> tuple[int, list[str]]:
    """Hold calls made more than once against the ledger; return how many, and what is wrong."""
    received = Counter(one.marker for one in upstream.requests)
    answered = Counter(one.marker for one in upstream.requests if one.answered)
    twice = sum(count - 1 for count in answered.values() if count > 1)
    wrong: list[str] = []
    if not strikes.open_then:
        wrong.append("no strike met an open call: this trial has shown nothing")
    if twice > strikes.may_repeat:
        wrong.append(f"{twice} calls made twice, the strikes explain {strikes.may_repeat}")
    unknown = books.status["unknown_outcomes"]
    explained = strikes.may_repeat + upstream.broken_off
    if unknown > explained:
        wrong.append(f"{unknown} calls of unknown outcome, of which {explained} are explained")
    # All that were answered twice, and as many as time allows of those that were only asked twice.
    suspects = [marker for marker, count in answered.items() if count > 1]
    others = sorted(set(received) - set(suspects), key=lambda m: (-received[m], rng.random()))
    suspects += others[:8]
    with ThreadPoolExecutor(4) as pool:
        shown = pool.map(lambda m: product.json("show", books.job_ids[_custom_id(m)]), suspects)
        ledgers = dict(zip(suspects, (one["calls"] for one in shown), strict=True))
    for marker, calls in ledgers.items():
        wrong += _faults_of(marker, calls, received[marker], answered[marker])
    known = sum(call["maybe_billed"] for calls in ledgers.values() for call in calls)
    if known > unknown or books.everything["unknown_outcomes"] != unknown:
        total = books.everything["unknown_outcomes"]
        wrong.append(
            f"unknown outcomes: {known} in ledgers, {unknown} of the batch, {total} of all"
        )
    return twice, wrong


def _custom_id(marker: str) -> str:
    return f"c-{int(marker.removeprefix('marker-'))}"


def _faults_of(
    marker: str, calls: list[dict[str, Any]], received: int, answered: int
) -> Iterator[str]:
    """Tell what of a job's requests its ledger leaves out."""
    states = Counter(call["state"] for call in calls)
    good = sum(call["state"] == "answered" and not call["error_code"] for call in calls)
    evidence = f"{marker}: {received} requests, {answered} answered whole; {json.dumps(calls)}"
    if received > len(calls):
        yield f"requests that the ledger does not have: {evidence}"
    if answered > good + states["unknown"]:
        yield f"answers that the ledger does not show: {evidence}"
    if states["prepared"] + states["sent"]:
        yield f"calls left open in the ledger of a finished job: {evidence}"
    if len({call["number"] for call in calls}) != len(calls):
        yield f"a number twice in the ledger: {evidence}"
    if any(call["state"] == "unknown" and not call["maybe_billed"] for call in calls):
        yield f"unknown, and yet not maybe billed: {evidence}"


def trial(options: argparse.Namespace, folder: Path) -> list[str]:
    """Run the whole trial; return what was wrong."""
    rng = random.Random(options.seed + 2)  # noqa: S311  # as above
    upstream = Upstream(options.seed, options.latency, options.faults)
    product = Product(folder, _variables(options, folder, upstream.url), *_size(options))
    try:
        product.run("migrate")
        batch = submit(product, options.jobs, rng)
        product.staff()
        assailant = Assailant(product, upstream, options)
        assailant.rage(options.seconds)
        ended = await_end(product, batch, options.patience)
        books = Books.read(product, batch, options.jobs)
        if not ended:
            return [f"not finished: {json.dumps(books.status)}"]
        wrong = list(breaches(books, upstream, options.jobs))
        twice, more = unmarked(product, books, upstream, assailant.strikes, rng)
        _tell(options, upstream, books, assailant.strikes, twice)
        return wrong + more
    finally:
        product.stop()


def _size(options: argparse.Namespace) -> tuple[bool, int]:
    return options.broker_url is None, options.workers


def _variables(options: argparse.Namespace, folder: Path, url: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CHATQUEUE_", "EVOLINK_"))}
    given = {
        "CHATQUEUE_DATABASE_URL": options.database_url,
        "CHATQUEUE_BROKER_URL": options.broker_url,
    }
    return {
        **kept,
        **{name: value for name, value in given.items() if value is not None},
        "EVOLINK_API_KEY": KEY,
        "CHATQUEUE_HOME": str(folder / "home"),
        "CHATQUEUE_TEXT_ENDPOINTS": url,
        "CHATQUEUE_MULTIMODAL_ENDPOINTS": url,
        "CHATQUEUE_MAX_IN_FLIGHT": str(options.slots),
        "CHATQUEUE_LEASE_SECONDS": str(options.lease),
        "CHATQUEUE_MAX_ATTEMPTS": "100",  # so that whatever is not answered was lost
        "CHATQUEUE_BACKOFF_CAP_SECONDS": "2",
        "CHATQUEUE_DRAIN_SECONDS": "1",
    }


def _tell(
    options: argparse.Namespace, upstream: Upstream, books: Books, strikes: Strikes, twice: int
) -> None:
    told = {
        "seed": options.seed,
        "jobs": options.jobs,
        "lines in the results": len(books.lines),
        "requests": len(upstream.requests),
        "answered whole": sum(one.answered for one in upstream.requests),
        "made twice": twice,
        "explained by strikes": strikes.may_repeat,
        "open at the strikes": strikes.open_then,
        "broken off": upstream.broken_off,
        "unknown outcomes": books.status["unknown_outcomes"],
        **{f"strike: {kind}": count for kind, count in sorted(strikes.kinds.items())},
    }
    for name, value in told.items():
        print(f"{name:>24}  {value}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 16))
    parser.add_argument("--jobs", type=int, default=2_000)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long it strikes")
    parser.add_argument("--every", type=float, default=3.0, help="mean seconds between strikes")
    parser.add_argument("--slots", type=int, default=16, help="calls at once, per worker")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--lease", type=float, default=8.0)
    parser.add_argument("--latency", type=float, default=1.0, help="median seconds of an answer")
    parser.add_argument("--faults", type=float, default=0.04, help="share of calls that fail")
    parser.add_argument("--patience", type=float, default=300.0, help="seconds to the end, after")
    parser.add_argument("--database-url", help="an empty database; without it SQLite")
    parser.add_argument("--broker-url", help="an empty broker; without it the embedded stack")
    return parser.parse_args()


@contextmanager
def _folder() -> Iterator[Path]:
    """A temporary folder that is kept, and named, where the trial does not end well."""
    path = Path(tempfile.mkdtemp(prefix="trial-"))
    try:
        yield path
    except BaseException:
        print(f"logs and books are kept in {path}", file=sys.stderr)
        raise
    subprocess.run(["rm", "-rf", str(path)], check=True)


def main() -> None:
    """Run a trial, print what it counted, and exit 1 with the evidence on any breach."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    options = _options()
    with _folder() as folder:
        wrong = trial(options, folder)
        if wrong:
            raise SystemExit(f"{len(wrong)} breaches\n" + "\n".join(wrong[:50]))
    print("nothing lost, nothing unaccounted for")


if __name__ == "__main__":
    main()
