"""Flower on our broker, on loopback unless set otherwise."""

from worker.queue.app import create_app
from worker.settings import Settings

MAX_TASKS = 20_000
"""About 5 KB each in Flower's memory."""


COLUMNS = "name,uuid,state,result,args,received,runtime,worker"


def serve_flower(settings: Settings) -> None:
    """Run Flower until told to stop. Raises SettingsError where there is no broker."""
    app = create_app(settings)
    app.start(
        [
            "--quiet",
            "flower",
            f"--address={settings.flower_address}",
            f"--port={settings.flower_port}",
            f"--max-tasks={MAX_TASKS}",
            f"--tasks_columns={COLUMNS}",
        ]
    )
