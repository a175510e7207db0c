"""Decides on every request: which path it is for, and what a chat call comes to.

The `Responder` of `worker.simulator.connection`. It holds all state that outlives a request: the
behaviour, the account, the ledger, scripted tries and stored answers. It never does I/O.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from worker.simulator.answers import Completion, Manner, complete
from worker.simulator.behaviour import MODELS, Behaviour
from worker.simulator.bodies import BodyError, ChatRequest, read_body
from worker.simulator.connection import Reply, Request
from worker.simulator.control import Control
from worker.simulator.deliveries import Delivery, Headers, Told, deliver, retry_after, whole
from worker.simulator.fates import Fate, ScriptError, draw_fate, latency, mix, read_script
from worker.simulator.faults import OK, RUNS_MODEL, STATUS_FAULTS, error_body
from worker.simulator.ledger import Call, Ledger
from worker.simulator.limits import Account

CHAT: Final = "/v1/chat/completions"

_ACCOUNT_FIELDS: Final = frozenset(
    {
        "requests_per_minute",
        "tokens_per_minute",
        "max_in_flight",
        "credits",
        "retry_after_seconds",
    }
)
_UNCOUNTED_CREDITS: Final = 1_000_000
_ENDINGS: Final = frozenset({"length", "content_filter"})
_TOO_LARGE: Final = error_body("The request is too large.", "invalid_request_error", "too_large")


def request_id(seed: int, number: int) -> str:
    """Give the id that the reply to this call carries."""
    return f"req_{mix(seed, number, 5):016x}"


class RefusedError(Exception):
    """A call is turned away before any fate: the ledger's outcome, and the answer."""

    def __init__(self, outcome: str, status: int, body: bytes, wait_seconds: float = 0.0) -> None:
        super().__init__(outcome)
        self.outcome = outcome
        self.status = status
        self.body = body
        self.wait_seconds = wait_seconds


class Service:
    """The simulated API, with one account for all callers."""

    def __init__(self, behaviour: Behaviour, ledger: Ledger) -> None:
        self.behaviour = behaviour
        self.ledger = ledger
        self._account = Account(behaviour, time.monotonic())
        self._tries: Counter[str] = Counter()
        self._stored: dict[str, Completion] = {}
        control = Control(self)
        self._routes: dict[str, dict[str, Callable[[Request], Delivery]]] = {
            "/healthz": {"GET": lambda _: _json({"status": "ok"})},
            "/v1/models": {"GET": self._models},
            "/v1/credits": {"GET": self._credits},
            **control.routes,
        }

    def set(self, fields: Mapping[str, Any]) -> Behaviour:
        """Patch the behaviour for the calls that arrive from now on.

        Setting a limit or the credits fills the buckets anew. Raises SettingsError.
        """
        self.behaviour = self.behaviour.patched(fields)
        if _ACCOUNT_FIELDS & set(fields):
            account = Account(self.behaviour, time.monotonic())
            account.used = self._account.used
            if "credits" not in fields:
                account.credits = self._account.credits
            self._account = account
        return self.behaviour

    def reset(self) -> None:
        """Forget all calls, tries and stored answers; credits and buckets are full again."""
        self.ledger.reset()
        self._tries.clear()
        self._stored.clear()
        self._account = Account(self.behaviour, time.monotonic())

    def body_limit(self) -> int:
        """Give the largest body that is kept, in bytes."""
        return self.behaviour.max_body_bytes

    def respond(self, request: Request) -> Reply:
        """Decide on a request."""
        path = request.target if request.target == CHAT else urlsplit(request.target).path
        if path == CHAT and request.method == "POST":
            return self._chat(request, path)
        if request.too_large:
            return Reply(whole(413, _TOO_LARGE))
        if path == CHAT:
            return Reply(_not_allowed(request.method, "POST"))
        if (methods := self._routes.get(path)) is None:
            return Reply(_not_found(path))
        handler = methods.get(request.method)
        return Reply(handler(request) if handler else _not_allowed(request.method, *methods))

    def leave(self, reply: Reply, *, answered: bool, disconnected: bool) -> None:
        """Take note of how it ended."""
        if reply.call is not None:
            self.ledger.leave(reply.call, answered=answered, disconnected=disconnected)

    # A chat call, in the order of its checks

    def _chat(self, request: Request, path: str) -> Reply:
        call = self._enter(request, path)
        try:
            chat = self._read(request, call)
            return self._strike(chat, call, self._fate(chat, call))
        except RefusedError as refused:
            return self._refuse(call, refused)

    def _enter(self, request: Request, path: str) -> Call:
        digest = sha256(request.body).hexdigest()[:16]
        call = self.ledger.arrive(path, digest)
        call.idempotency_key = request.header(b"idempotency-key")
        call.job = request.header(b"x-chatqueue-job")
        call.client_request_id = request.header(b"x-client-request-id")
        return call

    def _read(self, request: Request, call: Call) -> ChatRequest:
        """Give the valid request of an accepted key. Raises RefusedError."""
        if request.too_large:
            raise RefusedError("too_large", 413, _TOO_LARGE)
        if not self._known_key(request):
            raise RefusedError("unauthorized", 401, STATUS_FAULTS["401"].body)
        try:
            chat = read_body(request.body)
        except BodyError as error:
            raise _invalid(str(error), error.param) from error
        call.model, call.stream = chat.body.model, bool(chat.body.stream)
        if self.behaviour.models and chat.body.model not in self.behaviour.models:
            message = f"The model `{chat.body.model}` does not exist."
            body = error_body(message, "invalid_request_error", "model_not_found", "model")
            raise RefusedError("unknown_model", 404, body)
        return chat

    def _known_key(self, request: Request) -> bool:
        scheme, _, key = (request.header(b"authorization") or "").partition(" ")
        keys = self.behaviour.keys
        return scheme.lower() == "bearer" and (key in keys if keys else bool(key.strip()))

    def _fate(self, chat: ChatRequest, call: Call) -> Fate:
        """Give the scripted fate of this try, or a drawn one. Raises RefusedError."""
        if chat.script is None:
            return draw_fate(self.behaviour, call.number)
        try:
            steps = read_script(chat.script)
        except ScriptError as error:
            raise _invalid(str(error), "metadata.simulate") from error
        return steps[min(self._tries[_identity(call)], len(steps) - 1)]

    def _strike(self, chat: ChatRequest, call: Call, fate: Fate) -> Reply:
        stored = self._stored.get(call.idempotency_key or "") if fate.fault == OK else None
        completion = stored or self._complete(chat, call, fate)
        tokens = completion.usage.total_tokens
        if stored is None:
            self._admit(tokens)
        if chat.script is not None:
            self._tries[_identity(call)] += 1
        outcome = fate.fault if stored is None else "replayed"
        runs = stored is None and (fate.fault == OK or fate.fault in RUNS_MODEL)
        if runs:
            self._account.charge()
            self._store(call, completion, fate)
        delivery = deliver(fate.fault, self._told(chat, call, fate, completion))
        self.ledger.decide(call, outcome, delivery.status, tokens if runs else 0)
        return Reply(delivery, self._wait(call, fate), call)

    def _complete(self, chat: ChatRequest, call: Call, fate: Fate) -> Completion:
        ending = fate.fault if fate.fault in _ENDINGS else None
        manner = Manner(self.behaviour.seed, self.behaviour.answer_bytes, ending)
        ident = f"chatcmpl-{mix(self.behaviour.seed, call.number, 4):016x}"
        return complete(chat, manner, ident, int(call.arrived_at))

    def _admit(self, tokens: int) -> None:
        refusal = self._account.admit(tokens, self.ledger.in_flight, time.monotonic())
        if refusal is None:
            return
        if refusal.outcome == "out_of_credits":
            body = error_body(refusal.message, "insufficient_quota", "insufficient_quota")
            raise RefusedError(refusal.outcome, 402, body)
        body = error_body(refusal.message, "rate_limit_error", "rate_limit_exceeded")
        raise RefusedError(refusal.outcome, 429, body, refusal.retry_after_seconds)

    def _store(self, call: Call, completion: Completion, fate: Fate) -> None:
        if self.behaviour.idempotent and call.idempotency_key and fate.fault not in _ENDINGS:
            self._stored[call.idempotency_key] = completion

    def _told(self, chat: ChatRequest, call: Call, fate: Fate, completion: Completion) -> Told:
        behaviour, options = self.behaviour, chat.body.stream_options
        wait = fate.retry_after_seconds
        return Told(
            behaviour=behaviour,
            completion=completion,
            headers=self._headers(call),
            request_id=self._request_id(call),
            stream=call.stream,
            include_usage=bool(options and options.include_usage),
            retry_after_seconds=behaviour.retry_after_seconds if wait is None else wait,
        )

    def _wait(self, call: Call, fate: Fate) -> float:
        if fate.latency_seconds is not None:
            return fate.latency_seconds
        return latency(self.behaviour, call.number)

    def _refuse(self, call: Call, refused: RefusedError) -> Reply:
        headers = self._headers(call) + retry_after(refused.wait_seconds)
        self.ledger.decide(call, refused.outcome, refused.status, 0)
        return Reply(whole(refused.status, refused.body, headers=headers), call=call)

    def _headers(self, call: Call) -> Headers:
        request_id = ("x-request-id", self._request_id(call))
        return (request_id, *self._account.headers(time.monotonic()))

    def _request_id(self, call: Call) -> str:
        return request_id(self.behaviour.seed, call.number)

    # The other paths of the API

    def _models(self, request: Request) -> Delivery:
        if not self._known_key(request):
            return whole(401, STATUS_FAULTS["401"].body)
        names = self.behaviour.models or MODELS
        models = [{"id": name, "object": "model", "owned_by": "simulator"} for name in names]
        return _json({"object": "list", "data": models})

    def _credits(self, request: Request) -> Delivery:
        if not self._known_key(request):
            return whole(401, STATUS_FAULTS["401"].body)
        left, used = self._account.credits, self._account.used
        remaining = max(0, _UNCOUNTED_CREDITS - used) if left is None else left
        user = {"remaining_credits": remaining, "used_credits": used}
        data = {"token": {"remaining_credits": remaining}, "user": user}
        return _json({"data": data, "success": True})


def _identity(call: Call) -> str:
    """Tell the tries of one request from those of another."""
    return call.idempotency_key or call.body_sha256


def _invalid(message: str, param: str | None) -> RefusedError:
    body = error_body(message, "invalid_request_error", "invalid_request", param)
    return RefusedError("invalid", 400, body)


def _json(value: Any) -> Delivery:
    return whole(200, orjson.dumps(value))


def _not_found(path: str) -> Delivery:
    return whole(404, error_body(f"Unknown path: {path}", "invalid_request_error", "not_found"))


def _not_allowed(method: str, *allowed: str) -> Delivery:
    message = f"{method} is not allowed here."
    body = error_body(message, "invalid_request_error", "method_not_allowed")
    return whole(405, body, headers=(("allow", ", ".join(allowed)),))
