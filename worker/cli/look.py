"""Commands that look: status, jobs, show."""

from typing import Annotated, Any

import typer

from worker.cli import frame, render
from worker.client import Client
from worker.errors import NotFoundError
from worker.jobs import views
from worker.jobs.states import State
from worker.jobs.views import Job

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
Limit = Annotated[int, typer.Option(min=1, help="Show so many at the most, the newest.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for function in (status, jobs, show):
        frame.command(app)(function)


def status(
    ident: Annotated[str | None, typer.Argument(metavar="[ID]", help="A batch or a job.")] = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """Show how things stand: of everything, or of one batch or job."""
    with frame.client() as client:
        if ident is None:
            _status_of_all(client, limit, as_json=as_json)
        elif ident.startswith("job_"):
            _show_job(client, ident, as_json=as_json)
        else:
            _status_of_batch(client, ident, as_json=as_json)


def jobs(
    batch: Annotated[str | None, typer.Option(help="Only the jobs of this batch.")] = None,
    state: Annotated[State | None, typer.Option(help="Only jobs in this state.")] = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, the newest first."""
    with frame.client() as client:
        if batch is not None:
            client.batch(batch)
        found = client.jobs(batch_id=batch, state=state, limit=limit)
    if as_json:
        render.print_json([views.as_json(one) for one in found])
    else:
        render.jobs(found)


def show(
    job: Annotated[str, typer.Argument(metavar="JOB")],
    as_json: AsJson = False,
) -> None:
    """Show a job: its answer or error, and every call that was made for it."""
    with frame.client() as client:
        _show_job(client, job, as_json=as_json)


def _status_of_all(client: Client, limit: int, *, as_json: bool) -> None:
    counts = client.count()
    unknown = client.unknown_outcomes()
    pauses = client.pauses()
    halts = client.halted_queues()
    found = client.batches(limit)
    if as_json:
        render.print_json(
            {
                "jobs": {str(state): counts.get(state, 0) for state in State},
                "unknown_outcomes": unknown,
                "pauses": [views.as_json(one) for one in pauses],
                "halts": [views.as_json(one) for one in halts],
                "batches": [render.batch_json(one) for one in found],
            }
        )
        return
    render.say(", ".join(f"{counts.get(state, 0)} {state}" for state in State))
    if unknown:
        render.warn(f"{unknown} calls of unknown outcome: they may have been billed")
    render.held(counts.get(State.HELD, 0))
    render.halts(halts)
    render.pauses(pauses)
    if found:
        render.batches(found)


def _status_of_batch(client: Client, batch_id: str, *, as_json: bool) -> None:
    batch = client.batch(batch_id)
    counts = client.count(batch_id)
    unknown = client.unknown_outcomes(batch_id)
    failures = client.failures(batch_id)
    if as_json:
        states: dict[str, Any] = {str(state): counts.get(state, 0) for state in State}
        groups = [views.as_json(group) for group in failures]
        paused = [views.as_json(one) for one in client.pauses()]
        extra = {
            "jobs": states,
            "unknown_outcomes": unknown,
            "failures": groups,
            "pauses": paused,
        }
        render.print_json(render.batch_json(batch) | extra)
        return
    if not batch.is_finished:
        render.halts(client.halted_queues())
        render.pauses(client.pauses())
    render.batches([batch])
    render.summary(batch, counts, unknown)
    render.held(counts.get(State.HELD, 0), batch_id)
    for group in failures:
        render.say(f"  {group.state}: {group.count} x {group.code}: {group.message}")


def _show_job(client: Client, job_id: str, *, as_json: bool) -> None:
    if not job_id.startswith("job_"):
        raise NotFoundError(f"{job_id!r} is not a job's id: those begin with 'job_'")
    job = client.get(job_id)
    attempts = client.attempts(job_id)
    if as_json:
        calls = [views.as_json(one) for one in attempts]
        render.print_json(views.as_json(job) | {"calls": calls})
        return
    render.pairs(_facts(job))
    if attempts:
        render.say()
        render.attempts(attempts)


def _facts(job: Job) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "job": job.id,
        "batch": job.batch_id,
        "line": job.line or None,
        "custom_id": job.custom_id,
        "model": job.model,
        "state": str(job.state),
        "created": render.when(job.created_at),
        "finished": render.when(job.finished_at),
        "due": render.when(job.due_at),
        "expires": render.when(job.expires_at),
        "finish_reason": job.finish_reason,
        "error": f"{job.error_code}: {job.error_message}" if job.error_code else None,
        "content": "removed by 'chatqueue purge'" if job.is_emptied else job.content,
        "reasoning": job.reasoning_content,
        "refusal": job.refusal,
    }
    for call in job.tool_calls:
        validity = "" if call.arguments_valid else "  (not valid JSON)"
        facts[f"tool call {call.index}"] = f"{call.name}({call.arguments}){validity}"
    if job.total_tokens is not None:
        facts["tokens"] = (
            f"{job.prompt_tokens} in ({job.cached_tokens} cached), "
            f"{job.completion_tokens} out ({job.reasoning_tokens} reasoning)"
        )
    return facts
