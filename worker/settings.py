"""Settings: the environment or `.env`, read once, typed, frozen; every fault reported at once.

The only place that reads the environment. Names are `CHATQUEUE_*`, the key is `EVOLINK_API_KEY`.
Secrets are `SecretStr`: they appear in no repr and no log.
"""

import ipaddress
import os
import re
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Final, Self
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from worker.errors import SettingsError
from worker.prices import Price, read_price

DIRECT: Final = "https://direct.evolink.ai"
API: Final = "https://api.evolink.ai"
PREFIX: Final = "CHATQUEUE_"

_PLAIN: Final = re.compile(r"[!-~]+")
_REDIS: Final = {"redis", "rediss", "redis+socket", "valkey"}

Names = Annotated[tuple[str, ...], NoDecode]
Seconds = Annotated[float, Field(gt=0)]


class UnknownOutcome(StrEnum):
    """What becomes of a job whose call may have been billed and brought no answer."""

    RETRY = "retry"
    HOLD = "hold"
    FAIL = "fail"


class Settings(BaseSettings):
    """Everything that can be set. Each field's description is its documentation."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=".env", extra="ignore", frozen=True, populate_by_name=True
    )

    api_key: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("EVOLINK_API_KEY", "api_key"),
        description="The key of the API. Without one, the embedded stack uses the simulator.",
    )
    home: Path = Field(
        Path("~/.chatqueue"),
        description="Folder of the embedded stack: its database, its broker's files, its logs.",
    )
    database_url: SecretStr | None = Field(
        None,
        description="`postgresql://…` or `sqlite:///…`. Default: SQLite in the home.",
    )
    broker_url: SecretStr | None = Field(
        None,
        description="`redis://…`, `rediss://…`, `valkey://…`, `amqp://…`. Default: embedded.",
    )
    queue_prefix: str = Field(
        "chatqueue",
        pattern=r"^[A-Za-z0-9_-]+$",
        description="Prefix of the names on the broker, so that several installations share it.",
    )
    text_endpoints: Names = Field(
        (DIRECT, API), description="Base URLs for text requests, in order of preference."
    )
    multimodal_endpoints: Names = Field(
        (API, DIRECT), description="Base URLs for requests with images, in order of preference."
    )
    endpoint_keys: SecretStr | None = Field(
        None,
        description="Keys of single endpoints, `URL=KEY,URL=KEY`; the others use EVOLINK_API_KEY.",
    )
    requests_per_minute: int = Field(
        0, ge=0, description="The most calls a minute, per endpoint, key and model; 0: as learnt."
    )
    tokens_per_minute: int = Field(
        0, ge=0, description="The most tokens a minute, per endpoint, key and model; 0: as learnt."
    )
    limits_url: SecretStr | None = Field(
        None,
        description="The Redis through which workers share limits. Default: the broker, if Redis.",
    )
    max_in_flight: int = Field(
        256, ge=1, le=20_000, description="Calls in flight at once, per worker process."
    )
    interactive_slots: int = Field(
        16, ge=1, le=1_000, description="Slots kept for single jobs, per worker process."
    )
    workers: int = Field(2, ge=1, le=64, description="Worker processes of the embedded stack.")
    max_attempts: int = Field(
        6, ge=1, le=100, description="Calls made for one job before it fails."
    )
    backoff_base_seconds: Seconds = Field(
        0.5,
        description="The wait after a job's first failed call; it doubles with each further one.",
    )
    backoff_cap_seconds: Seconds = Field(
        8.0, description="The longest such wait. What a server asks for may be longer."
    )
    job_deadline_seconds: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="No call is begun for a job this long after its first start; 0: no end.",
    )
    unknown_outcome: UnknownOutcome = Field(
        UnknownOutcome.RETRY,
        description="What becomes of a job whose call may have been billed and brought no answer: "
        "`retry` calls again, `hold` lets a person decide, `fail` never pays twice.",
    )
    stream_models: Names = Field(
        ("gpt-5.1-thinking",),
        description="Models that are always called with a stream, which no long silence cuts off.",
    )
    stream_from_tokens: int = Field(
        8_000,
        ge=0,
        description="Requests that allow this many tokens are called with a stream; 0: none are.",
    )
    connect_timeout_seconds: Seconds = Field(
        10.0, description="Longest wait for a connection to an endpoint."
    )
    idle_timeout_seconds: Seconds = Field(
        120.0, description="Longest silence in a stream that has begun or is awaited."
    )
    call_timeout_seconds: Seconds = Field(
        600.0, description="Longest time one call may take as a whole; a stream, without an event."
    )
    lease_seconds: Annotated[float, Field(ge=3)] = Field(
        30.0, description="A worker unheard of for this long has its jobs taken over."
    )
    drain_seconds: Annotated[float, Field(ge=0)] = Field(
        30.0, description="How long a stopping worker lets its calls finish before it gives up."
    )
    shift_jobs: int = Field(
        10_000, ge=1, description="Jobs one shift claims before it hands over to the next."
    )
    shift_seconds: Seconds = Field(
        60.0, description="Seconds one shift claims before it hands over to the next."
    )
    prices: Annotated[tuple[Price, ...], NoDecode] = Field(
        (read_price("gpt-5.1*=1.25/0.125/10"),),
        description="US dollars for a million tokens, `MODEL=INPUT/CACHED/OUTPUT`, by commas, with "
        "`@YYYY-MM-DD` where one holds from a day on. Default: OpenAI's list price of GPT-5.1.",
    )
    flower_address: str = Field("127.0.0.1", description="Address on which Flower listens.")
    flower_port: int = Field(5555, ge=0, le=65_535, description="Port of Flower; 0 takes any.")
    flower_auth: SecretStr | None = Field(
        None,
        description="`USER:PASSWORD` of Flower, several by commas. Needed where it does not listen "
        "on loopback.",
    )
    log_format: str = Field(
        "auto",
        pattern="^(auto|console|json)$",
        description="`console`, `json`, or `auto`: console on a terminal, else JSON.",
    )

    @field_validator("text_endpoints", "multimodal_endpoints", "stream_models", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("text_endpoints", "multimodal_endpoints")
    @classmethod
    def _are_urls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("needs at least one URL")
        return tuple(map(base_url, value))

    @field_validator("prices", mode="before")
    @classmethod
    def _are_prices(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(read_price(part) for part in value.split(",") if part.strip())
        return value

    @field_validator("endpoint_keys")
    @classmethod
    def _are_keys(cls, value: SecretStr | None) -> SecretStr | None:
        for position, (url, key) in enumerate(_pairs(value), 1):
            # An entry is never repeated: what stands where a URL should be may be a key.
            if not _PLAIN.fullmatch(key) or not _is_base_url(url):
                raise ValueError(f"entry {position} must be URL=KEY")
        return value

    @field_validator("flower_auth")
    @classmethod
    def _are_users(cls, value: SecretStr | None) -> SecretStr | None:
        entries = value.get_secret_value().split(",") if value else []
        for position, entry in enumerate(entries, 1):
            user, _, password = entry.partition(":")
            if not user or not password:  # and no entry is ever repeated
                raise ValueError(f"entry {position} must be USER:PASSWORD")
        return value

    @field_validator("limits_url")
    @classmethod
    def _is_redis(cls, value: SecretStr | None) -> SecretStr | None:
        scheme = _scheme(value)
        if scheme and scheme not in _REDIS:
            raise ValueError(f"{scheme!r} is no Redis: redis, rediss, valkey or redis+socket")
        return value

    @field_validator("database_url")
    @classmethod
    def _is_known_database(cls, value: SecretStr | None) -> SecretStr | None:
        scheme = _scheme(value)
        if scheme and scheme.partition("+")[0] not in {"sqlite", "postgresql", "postgres"}:
            raise ValueError(f"{scheme!r} is not a database chatqueue knows: sqlite or postgresql")
        return value

    @field_validator("broker_url")
    @classmethod
    def _is_known_broker(cls, value: SecretStr | None) -> SecretStr | None:
        scheme = _scheme(value)
        known = _REDIS | {"amqp", "amqps"}
        if scheme and scheme not in known:
            raise ValueError(f"{scheme!r} is not a broker chatqueue knows: redis or amqp")
        return value

    @field_validator("home")
    @classmethod
    def _is_absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @property
    def sqlalchemy_url(self) -> str:
        """The database as SQLAlchemy takes it, with psycopg as the driver of PostgreSQL."""
        if self.database_url is None:
            return f"sqlite:///{self.home / 'chatqueue.db'}"
        url = self.database_url.get_secret_value()
        scheme, _, rest = url.partition(":")
        return f"postgresql+psycopg:{rest}" if scheme in {"postgres", "postgresql"} else url

    @property
    def celery_broker_url(self) -> str | None:
        """The broker as Celery takes it; None where the embedded one is to be used."""
        if self.broker_url is None:
            return None
        return _as_redis(self.broker_url.get_secret_value())

    @property
    def shared_redis_url(self) -> str | None:
        """The Redis through which workers share limits; None: each is alone."""
        if self.limits_url is not None:
            return _as_redis(self.limits_url.get_secret_value())
        return self.celery_broker_url if _scheme(self.broker_url) in _REDIS else None

    def keys(self) -> dict[str, SecretStr]:
        """The key of each endpoint: its own, or for those of these settings the common one."""
        common = self.text_endpoints + self.multimodal_endpoints if self.api_key else ()
        own = {base_url(url): SecretStr(key) for url, key in _pairs(self.endpoint_keys)}
        return {**{url: self.api_key for url in common if self.api_key}, **own}

    def endpoints_for(self, *, multimodal: bool) -> tuple[str, ...]:
        """The base URLs for a request's kind, in order of preference."""
        return self.multimodal_endpoints if multimodal else self.text_endpoints

    def check_flower(self) -> None:
        """Refuse to let others at Flower without a password. Raises SettingsError."""
        if self.flower_auth is None and not _is_loopback(self.flower_address):
            where = self.flower_address or "every address"
            needed = f"on {where} others may reach Flower, so it needs USER:PASSWORD here"
            raise SettingsError([f"CHATQUEUE_FLOWER_AUTH: {needed}"])

    @classmethod
    def load(cls, **overrides: object) -> Self:
        """Read the environment and `.env`; `overrides` win. Raises SettingsError, all faults."""
        try:
            return cls(**overrides)  # type: ignore[arg-type]  # pydantic checks them
        except ValidationError as error:
            raise SettingsError([_fault(e["loc"], e["msg"]) for e in error.errors()]) from None

    @classmethod
    def apart(cls, **given: object) -> Self:
        """Settings of these values and the defaults alone, whatever the environment has set."""
        defaults = {name: field.default for name, field in cls.model_fields.items()}
        return cls.load(**{**defaults, **given})

    def environment(self) -> dict[str, str]:
        """The process environment under which a child process reads these same settings."""
        own = {_variable(name): _text(getattr(self, name)) for name in type(self).model_fields}
        others = {name: text for name, text in os.environ.items() if name not in own}
        return {**others, **{name: text for name, text in own.items() if text is not None}}


def base_url(url: str) -> str:
    """Check where an API may be reached; return it without a slash at its end.

    Raises ValueError. The same rule for settings and for the options of a job.
    """
    parts = urlsplit(url)
    _ = parts.port  # raises ValueError where it is no number
    if parts.scheme not in {"http", "https"} or not parts.hostname or not _PLAIN.fullmatch(url):
        raise ValueError(f"{url!r} is not an http(s) URL such as {DIRECT}")
    if parts.query or parts.fragment or parts.username:
        raise ValueError("a base URL has no query, fragment or user name")
    return url.rstrip("/")


def _is_base_url(url: str) -> bool:
    try:
        base_url(url)
    except ValueError:
        return False
    return True


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process, read once."""
    return Settings.load()


def _variable(name: str) -> str:
    return "EVOLINK_API_KEY" if name == "api_key" else PREFIX + name.upper()


def _text(value: object) -> str | None:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return None if value is None else str(value)


def _fault(location: tuple[int | str, ...], message: str) -> str:
    name = str(location[0]) if location else ""
    variable = name if name.isupper() else _variable(name)
    return f"{variable}: {message.removeprefix('Value error, ')}"


def _pairs(keys: SecretStr | None) -> list[tuple[str, str]]:
    entries = keys.get_secret_value().split(",") if keys else []
    pairs = (entry.strip().partition("=") for entry in entries if entry.strip())
    return [(url, key) for url, _, key in pairs]


def _as_redis(url: str) -> str:
    return "redis" + url[len("valkey") :] if url.startswith("valkey:") else url


def _scheme(url: SecretStr | None) -> str:
    return urlsplit(url.get_secret_value()).scheme if url else ""
