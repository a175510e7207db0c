"""Enqueueing from a web application that has a Celery of its own.

The client makes its own Celery app and never becomes the current one, so the application's tasks
are not touched. Run it beside `chatqueue up`:

    python ops/examples/web_application.py
"""

from celery import Celery

from worker import Client

shop = Celery("shop", broker="memory://")


@shop.task  # type: ignore[untyped-decorator]  # Celery publishes no types
def order_placed(number: int) -> int:
    """Stand for the application's own work."""
    return number


def describe(client: Client, product: str) -> str:
    """Enqueue a description; return the job's id, as a request handler would."""
    body = {
        "model": "gpt-5.1-chat",
        "messages": [
            {"role": "system", "content": "You write one-sentence product descriptions."},
            {"role": "user", "content": product},
        ],
    }
    return client.submit(body).id


if __name__ == "__main__":
    with Client() as client:
        job = client.wait(describe(client, "a paper lantern"), timeout_seconds=60)
        print(job.state, job.content)
    print("the application's own app:", order_placed.app.main)
