from tests.contract.acts import (
    answer,
    claim,
    enlist,
    failure,
    job_ids,
    outcome_of,
    put,
    put_off,
    submit_batch,
)
from worker.jobs.states import State
from worker.store import results
from worker.store.engine import Database


def test_finished_jobs_come_in_the_order_of_the_input_however_they_finished(
    database: Database,
) -> None:
    batch_id = submit_batch(database, 5)
    claimed = claim(database, enlist(database), **{batch_id: 5})
    for one in reversed(claimed):
        put(database, outcome_of(one))
    found = list(results.results(database, batch_id))
    assert [one.custom_id for one in found] == [f"line-{n}" for n in range(1, 6)]
    assert [one.job_id for one in found] == job_ids(database, batch_id)


def test_open_jobs_are_left_out(database: Database) -> None:
    batch_id = submit_batch(database, 4)
    good, bad, waits = claim(database, enlist(database), **{batch_id: 3})
    put(database, outcome_of(good), outcome_of(bad, failure()))
    put_off(database, waits, 60)
    found = list(results.results(database, batch_id))
    assert [one.state for one in found] == [State.SUCCEEDED, State.FAILED]


def test_an_export_of_several_pages_has_every_line_once(database: Database) -> None:
    size = 2 * results.PAGE
    batch_id = submit_batch(database, size)
    claimed = claim(database, enlist(database), **{batch_id: size})
    put(database, *(outcome_of(one, answer(usage=None)) for one in claimed))
    found = [one.custom_id for one in results.results(database, batch_id)]
    assert found == [f"line-{n}" for n in range(1, size + 1)]


def test_an_export_that_stopped_in_the_middle_blocks_no_writer(database: Database) -> None:
    batch_id = submit_batch(database, results.PAGE + 1)
    claimed = claim(database, enlist(database), **{batch_id: results.PAGE + 1})
    put(database, *(outcome_of(one) for one in claimed))
    reader = results.results(database, batch_id)
    next(reader)
    submit_batch(database, 1)
