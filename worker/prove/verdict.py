"""The verdict: what was promised, held against three books that know nothing of each other.

Called by `worker.prove.scenario` once all work has ended or its time is over. Pure: evidence in,
lines out. A line with breaches is a promise that was broken.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from worker.jobs.states import TERMINAL, AttemptState, BatchState, State
from worker.prove.plan import INTERACTIVE_SLOTS, SLOTS
from worker.prove.staff import Fate, Posting
from worker.store.scratch import AttemptRow, BatchRow, Books

SHOWN: Final = 5
"""The most examples of one breach."""

_OPEN_CALL: Final = frozenset({AttemptState.PREPARED, AttemptState.SENT})
_LOST: Final = "worker_lost"
THAW_SECONDS: Final = 2.0
"""So long after it was frozen a worker may not have been heard of yet."""

_SLOTS: Final = SLOTS + INTERACTIVE_SLOTS


@dataclass(frozen=True, slots=True)
class Answered:
    """A call as the simulator received it. `billed`: an answer was made, whether it arrived or not.

    `job` is the idempotency key it came with. `arrived`: it went out whole.
    """

    number: int
    job: str | None
    request_id: str
    outcome: str
    billed: bool


@dataclass(frozen=True, slots=True)
class Handed:
    """A batch that was handed in, and what its results hold at the end, by custom_id."""

    id: str
    custom_ids: tuple[str, ...]
    exported: tuple[str, ...]
    was_cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Lost:
    """A call whose outcome was unknown from a moment on, whatever was learnt of it later."""

    at: float
    job_id: str
    fence: int
    worker_id: str
    error_code: str | None


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known. `unfinished`: jobs whose time was over before they ended, by state."""

    books: Books
    calls: tuple[Answered, ...]
    postings: tuple[Posting, ...]
    losses: tuple[Lost, ...]
    batches: tuple[Handed, ...]
    singles: tuple[str, ...]
    unknown_outcomes: int
    unfinished: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Line:
    """One promise: what was counted, and each way in which it was broken."""

    name: str
    value: int
    note: str = ""
    breaches: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """All lines, in the order in which they are read."""

    lines: tuple[Line, ...]

    @property
    def holds(self) -> bool:
        """Whether no promise was broken."""
        return not any(line.breaches for line in self.lines)


def judge(evidence: Evidence) -> Verdict:
    """Hold the evidence against what was promised."""
    return Verdict(
        (
            _ends(evidence),
            _losses(evidence),
            _records(evidence),
            _counters(evidence),
            _results(evidence),
            _calls(evidence),
            _repeats(evidence),
            _takeovers(evidence),
            _unknowns(evidence),
            _open_calls(evidence),
            _answers(evidence),
            _workers(evidence),
        )
    )


# --- jobs -----------------------------------------------------------------------------------------


def _ends(evidence: Evidence) -> Line:
    """How jobs ended. Nothing in the scenario makes a job fail, and only one batch is cancelled."""
    states = Counter(one.state for one in evidence.books.jobs)
    cancelled = {one.id for one in evidence.batches if one.was_cancelled}
    failed = [
        f"{one.id} is {one.state}: {one.error_code}"
        for one in evidence.books.jobs
        if one.state in TERMINAL - {State.SUCCEEDED}
        and not (one.state == State.CANCELLED and one.batch_id in cancelled)
    ]
    note = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    return Line("jobs", len(evidence.books.jobs), note, _examples(failed))


def _losses(evidence: Evidence) -> Line:
    """Jobs that were handed in and are in no final state."""
    over = Counter(one.batch_id for one in evidence.books.jobs if one.state in TERMINAL)
    there = {one.id: one.state for one in evidence.books.jobs}
    lost = [one for one in evidence.singles if there.get(one) not in TERMINAL]
    breaches = [f"{one}: {there.get(one, 'gone')}" for one in lost]
    missing = len(lost)
    for one in evidence.batches:
        short = len(one.custom_ids) - over[one.id]
        missing += abs(short)
        if short:
            breaches.append(f"{one.id}: {short} of {len(one.custom_ids)} did not end")
    if evidence.unfinished:
        states = ", ".join(f"{n} {state}" for state, n in sorted(evidence.unfinished.items()))
        breaches.append(f"the work did not end in time: {states}")
    return Line("lost", missing, breaches=_examples(breaches))


def _records(evidence: Evidence) -> Line:
    """Changes of jobs that had ended, and ends without a trace."""
    ends = Counter(one.job_id for one in evidence.books.changes if one.before not in TERMINAL)
    after = [one for one in evidence.books.changes if one.before in TERMINAL]
    twice = {job for job, count in ends.items() if count > 1} | {one.job_id for one in after}
    breaches = [f"{one.job_id} went from {one.before} to {one.after}" for one in after]
    breaches += [f"{job} ended {count} times" for job, count in ends.items() if count > 1]
    breaches += [
        f"{one.id} is {one.state}, and the trigger saw no end"
        for one in evidence.books.jobs
        if one.state in TERMINAL and not ends[one.id]
    ]
    return Line("recorded twice", len(twice), breaches=_examples(breaches))


def _counters(evidence: Evidence) -> Line:
    """Batches whose counters are not what a count of their jobs gives."""
    counted: defaultdict[str | None, Counter[str]] = defaultdict(Counter)
    for one in evidence.books.jobs:
        counted[one.batch_id][one.state] += 1
    wrong = [text for one in evidence.books.batches for text in _miscounts(one, counted[one.id])]
    return Line("counters wrong", len(wrong), breaches=_examples(wrong))


def _miscounts(batch: BatchRow, counted: Counter[str]) -> Iterator[str]:
    for state in (State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED):
        said = getattr(batch, state)
        if said != counted[state]:
            yield f"{batch.id} says {said} {state}, and has {counted[state]}"
    if batch.total != counted.total():
        yield f"{batch.id} says it has {batch.total} jobs, and has {counted.total()}"
    is_over = sum(counted[state] for state in TERMINAL) == batch.total
    if is_over != (batch.state in {BatchState.COMPLETED, BatchState.CANCELLED}):
        yield f"{batch.id} is {batch.state}, and its jobs are {'' if is_over else 'not '}over"


def _results(evidence: Evidence) -> Line:
    """Lines that the results of a batch have too many or too few."""
    breaches: list[str] = []
    wrong = 0
    for one in evidence.batches:
        found, wanted = Counter(one.exported), Counter(one.custom_ids)
        for difference, what in ((found - wanted, "too many"), (wanted - found, "missing")):
            wrong += difference.total()
            breaches += [f"{one.id}: {custom_id} {what}" for custom_id in difference]
    return Line("results missing or doubled", wrong, breaches=_examples(breaches))


# --- calls ----------------------------------------------------------------------------------------


def _calls(evidence: Evidence) -> Line:
    """Calls that reached the simulator, each of which must be in the ledger."""
    made = Counter(one.job for one in evidence.calls)
    written = Counter(one.job_id for one in evidence.books.attempts)
    breaches = [
        f"{job or 'a call without a key'}: {count} calls, {written[job or '']} in the ledger"
        for job, count in made.items()
        if count > written[job or ""]
    ]
    note = f"{len(evidence.books.attempts)} in the ledger"
    return Line("calls", len(evidence.calls), note, _examples(breaches))


def _repeats(evidence: Evidence) -> Line:
    """Answers that were made, and so paid for, after the first one of their job: each explained."""
    billed = Counter(one.job for one in evidence.calls if one.billed)
    attempts = _by_job(evidence.books.attempts)
    causes = _Causes(evidence)
    found: Counter[str] = Counter()
    breaches: list[str] = []
    for job, count in billed.items():
        own = attempts.get(job or "", ())
        marks = [cause for one in own if (cause := causes.of(one))]
        # One answer ends its job; each other one has its mark in the ledger.
        good = sum(_is_good(one) and causes.of(one) is None for one in own)
        if good > 1:
            breaches.append(f"{job} was answered {good} times, and none was lost")
        if count - min(good, 1) > len(marks):
            breaches.append(f"{job}: {count} answers were made, the ledger explains fewer")
        found.update(marks[: count - 1])
    note = ", ".join(f"{count} {cause}" for cause, count in found.most_common())
    return Line("calls made twice", sum(billed.values()) - len(billed), note, _examples(breaches))


def _is_good(one: AttemptRow) -> bool:
    return one.state == AttemptState.ANSWERED and one.error_code is None


class _Causes:
    """Why a call may have been paid for in vain, as far as the ledger and the triggers tell."""

    def __init__(self, evidence: Evidence) -> None:
        self._fates = _fates(evidence)
        self._lost = {(one.job_id, one.fence) for one in evidence.losses}

    def of(self, one: AttemptRow) -> str | None:
        """Say why; None where nothing is marked."""
        if one.state == AttemptState.UNKNOWN or (one.job_id, one.fence) in self._lost:
            fates = " and ".join(sorted(self._fates.get(one.worker_id, ())))
            return f"worker {fates}" if fates else str(one.error_code)
        if one.maybe_billed or (one.error_code is not None and one.total_tokens is not None):
            return one.error_code
        return None


def _takeovers(evidence: Evidence) -> Line:
    """Calls taken from a worker that was well, and more lost with one than it could have made."""
    postings = _postings(evidence)
    lost = [one for one in evidence.losses if one.error_code == _LOST]
    well = [one for one in lost if not _was_gone(postings.get(one.worker_id), one.at)]
    breaches = [
        f"{one.job_id}, call {one.fence}, of {one.worker_id} at {one.at:.1f} s" for one in well
    ]
    by_worker = Counter(one.worker_id for one in lost if one not in well)
    breaches += [
        f"{count} calls were lost with {worker}, which had {_SLOTS} slots"
        for worker, count in by_worker.items()
        if count > _SLOTS * _times_gone(postings[worker])
    ]
    return Line("calls taken from workers that were well", len(well), breaches=_examples(breaches))


def _was_gone(posting: Posting | None, moment: float) -> bool:
    return posting is not None and posting.was_gone(moment, THAW_SECONDS)


def _times_gone(posting: Posting) -> int:
    """How often all that it held could be taken from it: each time frozen, and at its end."""
    frozen = sum(spell.fate is Fate.FROZEN for spell in posting.spells)
    return frozen + bool(posting.fates - {Fate.FROZEN})


def _unknowns(evidence: Evidence) -> Line:
    """Calls that may have been billed in vain, as the queue counts them and as the ledger does."""
    attempts = evidence.books.attempts
    breaches = [
        f"{one.job_id}, call {one.fence}: not marked"
        for one in attempts
        if one.state == AttemptState.UNKNOWN and not one.maybe_billed
    ]
    marked = sum(one.maybe_billed for one in attempts)
    if evidence.unknown_outcomes != marked:
        breaches.append(f"{evidence.unknown_outcomes} are told, {marked} are in the ledger")
    return Line("unknown outcomes", evidence.unknown_outcomes, breaches=_examples(breaches))


def _open_calls(evidence: Evidence) -> Line:
    """Calls that the ledger leaves open, though nobody makes them any more."""
    left = [
        f"{one.job_id}, call {one.fence}, of worker {one.worker_id}: {one.state}"
        for one in evidence.books.attempts
        if one.state in _OPEN_CALL
    ]
    return Line("calls left open in the ledger", len(left), breaches=_examples(left))


def _answers(evidence: Evidence) -> Line:
    """Jobs whose answer is not one that the simulator gave to a call of that job."""
    given = {(one.job, one.request_id) for one in evidence.calls if one.outcome == "ok"}
    wrong = [
        f"{one.id} has the answer of {one.request_id}"
        for one in evidence.books.jobs
        if one.state == State.SUCCEEDED and (one.id, one.request_id) not in given
    ]
    return Line("answers of another job", len(wrong), breaches=_examples(wrong))


def _workers(evidence: Evidence) -> Line:
    """Worker processes that ended unasked, or did not when asked."""
    texts = {Fate.DIED: "ended by itself", Fate.STUCK: "did not stop"}
    wrong = [
        f"{one.name} (process {one.pid}) {text}"
        for one in evidence.postings
        for fate, text in texts.items()
        if fate in one.fates
    ]
    note = f"of {len(evidence.postings)}"
    return Line("workers that died or hung", len(wrong), note, _examples(wrong))


# --- inside ---------------------------------------------------------------------------------------


def _by_job(attempts: Iterable[AttemptRow]) -> dict[str, list[AttemptRow]]:
    found: defaultdict[str, list[AttemptRow]] = defaultdict(list)
    for one in attempts:
        found[one.job_id].append(one)
    return found


def _postings(evidence: Evidence) -> dict[str, Posting]:
    """Each worker's process, by the id that it goes by in the database."""
    by_number = {one.pid: one for one in evidence.postings}
    return {one.id: by_number[one.pid] for one in evidence.books.workers if one.pid in by_number}


def _fates(evidence: Evidence) -> dict[str, set[Fate]]:
    return {worker: one.fates for worker, one in _postings(evidence).items()}


def _examples(breaches: Sequence[str]) -> tuple[str, ...]:
    more = len(breaches) - SHOWN
    return (*breaches[:SHOWN], *((f"and {more} more",) if more > 0 else ()))
