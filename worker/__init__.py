"""chatqueue: a durable job queue for chat completions."""
