"""Celery: the doorbell, a worker's tasks, and the sweep."""
