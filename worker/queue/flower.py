"""Flower on our broker: on loopback, or with a password."""

from worker.queue.app import create_app
from worker.settings import Settings

MAX_TASKS = 20_000
"""About 5 KB each in Flower's memory."""


COLUMNS = "name,uuid,state,result,args,received,runtime,worker"


def serve_flower(settings: Settings) -> None:
    """Run Flower until told to stop.

    Raises SettingsError where there is no broker, and where others could reach it without a
    password: whoever can open Flower can revoke tasks and shut down workers.
    """
    settings.check_flower()
    app = create_app(settings)
    words = [
        f"--address={settings.flower_address}",
        f"--port={settings.flower_port}",
        f"--max-tasks={MAX_TASKS}",
        f"--tasks_columns={COLUMNS}",
    ]
    if settings.flower_auth is not None:
        # These are no arguments of the process: nobody sees them in a list of processes.
        words.append(f"--basic_auth={settings.flower_auth.get_secret_value()}")
    app.start(["--quiet", "flower", *words])
