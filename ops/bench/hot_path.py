"""Where the CPU of a job goes, by stage: from samples of a worker that runs the main job.

    python -m ops.bench.hot_path --jobs 15000 --database-url postgresql://…

py-spy (of the extra `bench`; it needs the right to trace a process) looks at the worker 500 times a
second and notes which thread holds the interpreter, and in what. A sample counts for the innermost
stage of its stack. The shares are given of the CPU that a run without py-spy had taken.
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ops.bench import ground
from ops.bench.cases import OURS, Case, measure
from worker import Client

STAGES = {
    "claim: look for work": ("lanes_with_work", "_paused"),
    "claim: limits, circuits, pauses": ("Gate.ask", "Gate.settle", "Gate.tell"),
    "claim: take the jobs": ("Dispatch.claim",),
    "build the request": ("Upstream._request",),
    "send it, wait for headers": ("AiohttpTransport.handle_async_request",),
    "receive": ("ResponseHandler.data_received", "_read_body", "_Reply.__init__"),
    "parse": ("read_answer", "read_rate_limits", "mismatch"),
    "assemble a stream": ("Upstream._read_stream",),
    "call, decide, report": ("Kernel._execute", "Kernel.start", "Shift._begin"),
    "record": ("Recorder._run",),
    "events": ("Herald._tell", "Rounds._run"),
    "the event loop itself": ("Runtime._run_loop",),
}
REST = "all else"


def main() -> None:
    """Measure, and print milliseconds of CPU per job by stage, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=15_000)
    parser.add_argument("--in-flight", type=int, default=500)
    parser.add_argument("--database-url")
    options = parser.parse_args()
    case = Case(jobs=options.jobs, in_flight=options.in_flight, server=options.database_url)
    whole = float(measure(OURS, case)["cpu_ms_per_job"])
    counts = counted(_samples(case))
    total = counts.total()
    stages = {name: round(whole * counts[name] / total, 4) for name in (*STAGES, REST)}
    print(json.dumps({"cpu_ms_per_job": whole, "stages": stages, "samples": total}, indent=2))


def _samples(case: Case) -> str:
    with (
        tempfile.TemporaryDirectory() as folder,
        ground.simulator(latency_seconds=case.latency) as url,
        ground.settings(
            Path(folder), url, server=case.server, max_in_flight=case.in_flight
        ) as settings,
        Client(settings) as client,
        ground.Workers.run(settings) as workers,
    ):
        raw = Path(folder) / "samples"
        worker = workers.processes[0].pid
        words = ["--gil", "--rate=500", "--format=raw", f"--output={raw}", f"--pid={worker}"]
        batch = client.submit_many(map(ground.request, range(case.jobs)), name="profile")
        with subprocess.Popen(
            ["py-spy", "record", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as spy:
            client.wait_batch(batch.id)
            spy.send_signal(2)
        return raw.read_text()


def counted(raw: str) -> Counter[str]:
    """Count the samples of each stage. A line: frames from the outermost, `;` between, a count."""
    counts: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        counts[_stage(reversed(stack.split(";")))] += int(count)
    return counts


def _stage(frames: Iterable[str]) -> str:
    for frame in frames:
        function = re.sub(r" \(.*", "", frame)
        for name, functions in STAGES.items():
            if function in functions:
                return name
    return REST


if __name__ == "__main__":
    main()
