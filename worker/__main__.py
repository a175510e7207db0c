"""`python -m worker` is `chatqueue`."""

from worker.cli import main

main()
