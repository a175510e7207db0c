"""Takes away, one at a time, what keeps the books right, and checks that a test notices.

    python ops/trials/mutants.py            # all of them, a few minutes
    python ops/trials/mutants.py fence      # those with the word in their name

Each mutant is an exact change of text in a copy of the tree, and names the tests that must fail
for it. A text that is not found exactly once is an error, so this list cannot rot silently; and the
tests must pass on the unchanged copy, so that none fails for another reason.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TREES = ("worker", "migrations", "tests", "ops")
FILES = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile")
PASSED, FAILED = 0, 1
"""Exit statuses of pytest; others say that the tests did not run at all."""

CLAIMS = "tests/contract/test_claims.py"
RECORDS = "tests/contract/test_records.py"
OLD_CALL = (
    "tests/contract/test_books.py::"
    "test_a_worker_that_claimed_a_job_again_gives_back_and_forgets_the_old_call_only"
)
RECORDS_PY = "worker/store/records.py"
CLAIMS_PY = "worker/store/claims.py"
LOST_PY = "worker/store/lost.py"


class RottenError(Exception):
    """A mutant's text is not in the tree, or there more than once."""


@dataclass(frozen=True)
class Mutant:
    """What is changed in one file, each text for another, and the tests that must notice."""

    name: str
    path: str
    changes: tuple[tuple[str, str], ...]
    tests: tuple[str, ...]

    def text(self, root: Path) -> str:
        """The file as it is after the changes. Raises RottenError."""
        text = (root / self.path).read_text(encoding="utf-8")
        for old, new in self.changes:
            if (count := text.count(old)) != 1:
                raise RottenError(f"{self.name}: found {count} times in {self.path}:\n{old}")
            text = text.replace(old, new)
        return text


MUTANTS = (
    Mutant(
        "record: no fence",
        RECORDS_PY,
        (
            ("if held.get(r.job_id) == r.fence]", "if r.job_id in held]"),
            ('job.c.fence == given("b_fence"),', 'job.c.fence >= given("b_fence"),'),
        ),
        (f"{RECORDS}::test_a_stale_worker_cannot_record_over_a_newer_claim",),
    ),
    Mutant(
        "record: any state",
        RECORDS_PY,
        (
            (
                'bindparam("ids", expanding=True)), job.c.state == State.RUNNING)',
                'bindparam("ids", expanding=True)))',
            ),
            (
                "        job.c.state == State.RUNNING,\n    )\n\n\ndef _finish",
                "    )\n\n\ndef _finish",
            ),
        ),
        (f"{RECORDS}::test_an_outcome_is_recorded_once_however_often_it_is_told",),
    ),
    Mutant(
        "record: the ledger without fence",
        RECORDS_PY,
        (
            (
                'attempt.c.job_id == given("b_id"), attempt.c.fence == given("b_fence"))',
                'attempt.c.job_id == given("b_id"), attempt.c.fence >= given("b_fence"))',
            ),
        ),
        (f"{RECORDS}::test_a_stale_worker_cannot_record_over_a_newer_claim",),
    ),
    Mutant(
        "record: counters not added",
        RECORDS_PY,
        ((" if connection.scalar(_COUNT, row)]", "]"),),
        (f"{RECORDS}::test_counters_and_tokens_are_exact_over_answers_failures_and_retried_calls",),
    ),
    Mutant(
        "claim: no lock and any state",
        CLAIMS_PY,
        (
            (".with_for_update(skip_locked=True).cte", ".cte"),
            (
                (
                    "job.c.id.in_(select(ours.c.id)),\n"
                    "            job.c.state.in_([State.QUEUED, State.WAITING]),"
                ),
                "job.c.id.in_(select(ours.c.id)),",
            ),
        ),
        (f"{CLAIMS}::test_threads_claiming_one_lane_never_get_the_same_job_and_leave_none",),
    ),
    Mutant(
        "claim: one by its id in any state",
        CLAIMS_PY,
        (
            (
                (
                    "job.c.id == job_id, job.c.state.in_([State.QUEUED, State.WAITING])\n    )\n"
                    "    return next("
                ),
                "job.c.id == job_id\n    )\n    return next(",
            ),
            (
                (
                    "            job.c.state.in_([State.QUEUED, State.WAITING]),\n        )\n"
                    "        .values(\n            state=State.RUNNING,"
                ),
                "        )\n        .values(\n            state=State.RUNNING,",
            ),
        ),
        (f"{CLAIMS}::test_a_single_job_can_be_claimed_by_its_id_at_once_and_only_once",),
    ),
    Mutant(
        "claim: no line in the ledger",
        CLAIMS_PY,
        (("    insert_many(connection, attempt, ledger)\n", "    len(ledger)\n"),),
        (f"{CLAIMS}::test_the_ledger_has_a_row_for_each_claim_before_any_call",),
    ),
    Mutant(
        "give back: no fence",
        LOST_PY,
        (("if held.get(job_id) == fence]", "if job_id in held]"),),
        (OLD_CALL,),
    ),
    Mutant(
        "give back: whoever has it",
        LOST_PY,
        (
            ("if held.get(job_id) == fence]", "if held is not None]"),
            (
                "job.c.id.in_(ours), job.c.state == State.RUNNING, job.c.worker_id == worker_id)",
                "job.c.id.in_(ours), job.c.state == State.RUNNING)",
            ),
        ),
        (f"{CLAIMS}::test_a_worker_gives_back_only_what_it_still_holds",),
    ),
    Mutant(
        "forget: no fence",
        LOST_PY,
        (
            (
                'attempt.c.fence == bindparam("b_fence"),\n            or_(',
                'attempt.c.fence >= bindparam("b_fence"),\n            or_(',
            ),
        ),
        (OLD_CALL,),
    ),
    Mutant(
        "rescue: every worker counts as dead",
        LOST_PY,
        (("return select(worker.c.id).where(or_(false(), *same))", "return select(worker.c.id)"),),
        ("tests/contract/test_steering.py::test_a_worker_that_gave_a_sign_since_keeps_its_jobs",),
    ),
    Mutant(
        "watch: a lease that has run out is enough",
        "worker/execution/upkeep.py",
        (("(CONFIRM_SECONDS if sign.lapsed", "(0.0 if sign.lapsed"),),
        ("tests/unit/test_upkeep.py",),
    ),
    Mutant(
        "clock: nobody sees that it went back",
        "worker/execution/upkeep.py",
        (("        self._mend_setback()\n", ""),),
        ("tests/contract/test_setback.py",),
    ),
    Mutant(
        "rescue: lost calls stay open",
        LOST_PY,
        (("    lose_calls(connection, [row.id for row in lost], WORKER_LOST, message)\n", ""),),
        (
            (
                f"{CLAIMS}::test_the_jobs_of_a_worker_without_a_lease_are_queued_again_"
                "and_their_calls_unknown"
            ),
        ),
    ),
    Mutant(
        "rescue: no poison",
        LOST_PY,
        (
            ("for row in lost if row.attempts < max_attempts]", "for row in lost]"),
            ("for row in lost if row.attempts >= max_attempts]", "for row in lost[:0]]"),
        ),
        (f"{CLAIMS}::test_a_job_whose_every_worker_died_fails_as_poison",),
    ),
    Mutant(
        "submit: nobody is rung for a batch",
        "worker/client.py",
        (("            self._bell.ring_shift()\n", "            pass\n"),),
        ("tests/contract/test_doorbell.py",),
    ),
    Mutant(
        "submit: nobody is rung for a single job",
        "worker/client.py",
        (("            self._bell.ring_job(job_id)\n", "            pass\n"),),
        ("tests/contract/test_doorbell.py",),
    ),
    Mutant(
        "call: another idempotency key in each try",
        "worker/execution/kernel.py",
        (
            (
                "if claimed.revision else claimed.id\n",
                'if claimed.revision else f"{claimed.id}-{claimed.fence}"\n',
            ),
        ),
        (
            (
                "tests/integration/test_calls_that_fail.py::"
                "test_every_try_of_a_job_carries_the_same_idempotency_key"
            ),
        ),
    ),
    Mutant(
        "drain: nothing is given back",
        "worker/execution/runtime.py",
        (("        await self._give_back([call.key for call in cut])\n", ""),),
        (
            (
                "tests/integration/test_stopping.py::"
                "test_calls_longer_than_the_grace_are_given_back_unburnt_and_said_to_be_unknown"
            ),
        ),
    ),
    Mutant(
        "recorder: an answer is given up when the database is away",
        "worker/execution/recorder.py",
        (("if self._given_up.wait(OUTAGE_PAUSE_SECONDS):", "if True:"),),
        ("tests/unit/test_recorder.py::test_an_answer_waits_out_an_outage_of_the_database",),
    ),
)


def main() -> None:
    """Try every mutant, or those whose name has a word in it; exit 1 where one survives."""
    words = sys.argv[1:]
    chosen = [one for one in MUTANTS if not words or any(word in one.name for word in words)]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder)
        _copy(copy)
        tests = sorted({test for one in chosen for test in one.tests})
        status, output = _test(copy, tests)
        if status != PASSED:
            raise SystemExit(f"the tests fail on the tree as it is:\n{output}")
        survived = [one.name for one in chosen if not _is_noticed(one, copy)]
    if survived:
        raise SystemExit(f"{len(survived)} survived: {'; '.join(survived)}")


def _copy(folder: Path) -> None:
    for name in TREES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)


def _is_noticed(mutant: Mutant, copy: Path) -> bool:
    path = copy / mutant.path
    whole = path.read_text(encoding="utf-8")
    path.write_text(mutant.text(copy), encoding="utf-8")
    try:
        status, output = _test(copy, mutant.tests)
    finally:
        path.write_text(whole, encoding="utf-8")
    if status not in {PASSED, FAILED}:
        raise SystemExit(f"{mutant.name}: the tests did not run:\n{output}")
    print(f"{'noticed ' if status == FAILED else 'SURVIVED'}  {mutant.name}", flush=True)
    return status == FAILED


def _test(copy: Path, tests: list[str] | tuple[str, ...]) -> tuple[int, str]:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += ["-m", "not services and not long", *tests]
    # Bytecode is told stale by time and size, which two mutants of one second may share.
    variables = {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command,
        cwd=copy,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


if __name__ == "__main__":
    main()
