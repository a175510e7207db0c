import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from worker.errors import SettingsError
from worker.settings import API, DIRECT, Settings, settings

KEY = "sk-do-not-show-me"
DATABASE = "postgresql://user:hidden-word@db.example/queue"
BROKER = "redis://:hidden-word@broker.example/0"


def test_nothing_needs_to_be_set() -> None:
    found = Settings.load()
    assert found.api_key is None
    assert found.text_endpoints == (DIRECT, API)
    assert found.multimodal_endpoints == (API, DIRECT)
    assert found.sqlalchemy_url == f"sqlite:///{found.home}/chatqueue.db"
    assert found.celery_broker_url is None


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_the_environment_is_read_by_its_documented_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOLINK_API_KEY", KEY)
    monkeypatch.setenv("CHATQUEUE_MAX_IN_FLIGHT", "7")
    monkeypatch.setenv("CHATQUEUE_TEXT_ENDPOINTS", " https://a.example/ , https://b.example,")
    found = Settings.load()
    assert found.api_key is not None
    assert found.api_key.get_secret_value() == KEY
    assert found.max_in_flight == 7
    assert found.text_endpoints == ("https://a.example", "https://b.example")


def test_a_dot_env_file_is_read_and_the_environment_wins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("CHATQUEUE_WORKERS=3\nCHATQUEUE_MAX_ATTEMPTS=4\nOTHER=1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHATQUEUE_WORKERS", "5")
    found = Settings.load()
    assert (found.workers, found.max_attempts) == (5, 4)


def test_every_fault_is_reported_at_once_by_the_name_of_its_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong = {
        "CHATQUEUE_MAX_IN_FLIGHT": "0",
        "CHATQUEUE_WORKERS": "many",
        "CHATQUEUE_TEXT_ENDPOINTS": "",
        "CHATQUEUE_MULTIMODAL_ENDPOINTS": "ftp://files.example",
        "CHATQUEUE_DATABASE_URL": "mysql://db.example/x",
        "CHATQUEUE_BROKER_URL": "kafka://b.example",
        "CHATQUEUE_LEASE_SECONDS": "1",
        "CHATQUEUE_LOG_FORMAT": "xml",
        "CHATQUEUE_UNKNOWN_OUTCOME": "maybe",
        "CHATQUEUE_STREAM_FROM_TOKENS": "-1",
        "CHATQUEUE_JOB_DEADLINE_SECONDS": "-1",
        "CHATQUEUE_BACKOFF_BASE_SECONDS": "0",
        "CHATQUEUE_FLOWER_PORT": "70000",
    }
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as error:
        Settings.load()
    assert sorted(fault.partition(":")[0] for fault in error.value.faults) == sorted(wrong)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("text_endpoints", "https://u:p@a.example", "has no query, fragment or user name"),
        ("text_endpoints", "https://a.example/?x=1", "has no query, fragment or user name"),
        ("text_endpoints", "a.example", "is not an http(s) URL"),
        ("text_endpoints", ",", "needs at least one URL"),
        ("database_url", "mysql://db", "sqlite or postgresql"),
        ("broker_url", "http://b", "redis or amqp"),
    ],
)
def test_a_fault_says_what_was_expected(name: str, value: str, words: str) -> None:
    with pytest.raises(SettingsError) as error:
        Settings.load(**{name: value})
    (fault,) = error.value.faults
    assert words in fault
    assert fault.startswith(f"CHATQUEUE_{name.upper()}: ")


def test_faults_never_quote_a_secret() -> None:
    with pytest.raises(SettingsError) as error:
        Settings.load(api_key=KEY, database_url=f"mysql:{DATABASE}", broker_url=f"x{BROKER}")
    assert KEY not in str(error.value)
    assert "hidden-word" not in str(error.value)


def test_secrets_are_in_no_form_of_the_settings() -> None:
    found = Settings.load(api_key=KEY, database_url=DATABASE, broker_url=BROKER)
    for text in (repr(found), str(found), found.model_dump_json(), str(found.model_dump())):
        assert KEY not in text
        assert "hidden-word" not in text


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings.load().workers = 3  # type: ignore[misc]  # that is the point


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u@h/d", "postgresql+psycopg://u@h/d"),
        ("postgres://u@h/d", "postgresql+psycopg://u@h/d"),
        ("postgresql+psycopg://u@h/d", "postgresql+psycopg://u@h/d"),
        ("sqlite:////var/x.db", "sqlite:////var/x.db"),
    ],
)
def test_a_database_url_is_given_its_driver(url: str, expected: str) -> None:
    assert Settings.load(database_url=url).sqlalchemy_url == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("valkey://h/1", "redis://h/1"),
        ("redis://h/1", "redis://h/1"),
        ("redis+socket:///x.sock", "redis+socket:///x.sock"),
        ("amqp://h", "amqp://h"),
    ],
)
def test_a_broker_url_is_given_as_celery_takes_it(url: str, expected: str) -> None:
    assert Settings.load(broker_url=url).celery_broker_url == expected


def test_each_kind_of_request_has_its_endpoints() -> None:
    found = Settings.load(
        text_endpoints="https://t.example", multimodal_endpoints="https://m.example"
    )
    assert found.endpoints_for(multimodal=False) == ("https://t.example",)
    assert found.endpoints_for(multimodal=True) == ("https://m.example",)


def test_models_to_stream_are_named_in_a_list_that_may_be_empty() -> None:
    assert Settings.load().stream_models == ("gpt-5.1-thinking",)
    assert Settings.load(stream_models="a, b").stream_models == ("a", "b")
    assert Settings.load(stream_models="").stream_models == ()


def test_the_home_is_absolute_and_its_tilde_expanded(tmp_path: Path) -> None:
    assert Settings.load(home="~/queue").home == tmp_path / "queue"
    assert Settings.load(home="queue").home == tmp_path / "queue"


FULL: dict[str, Any] = {
    "api_key": KEY,
    "database_url": DATABASE,
    "broker_url": BROKER,
    "text_endpoints": "https://a.example,https://b.example/x",
    "max_in_flight": 3,
    "stream_models": "",
    "job_deadline_seconds": 60,
    "unknown_outcome": "fail",
    "connect_timeout_seconds": 0.25,
    "log_format": "json",
    "flower_port": 0,
    "flower_auth": "me:secret,you:other",
    "prices": "a=1/0.1/2",
}


@pytest.mark.parametrize("given", [{}, FULL], ids=["defaults", "everything"])
def test_a_child_process_reads_the_same_settings(given: dict[str, Any]) -> None:
    parent = Settings.load(**given)
    code = "from worker.settings import settings as s; print(s().environment() | {'PWD': ''})"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=parent.environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    ours = {
        name: value
        for name, value in parent.environment().items()
        if name.startswith(("CHATQUEUE_", "EVOLINK_"))
    }
    for name, value in ours.items():
        assert f"{name!r}: {value!r}" in done.stdout


@pytest.mark.parametrize("given", ["hunter2", "me:", ":hunter2", "me:hunter2,"])
def test_a_password_without_its_user_is_refused_and_not_repeated(given: str) -> None:
    with pytest.raises(SettingsError, match=r"CHATQUEUE_FLOWER_AUTH: entry . must be") as raised:
        Settings.load(flower_auth=given)
    assert "hunter2" not in str(raised.value)


def test_the_settings_of_a_process_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = settings()
    monkeypatch.setenv("CHATQUEUE_WORKERS", "9")
    assert settings() is first


def test_a_secret_given_as_such_is_taken() -> None:
    assert Settings.load(api_key=SecretStr(KEY)).api_key == SecretStr(KEY)


# --- keys and the shared limits -------------------------------------------------------------------


def shown(found: Settings) -> dict[str, str]:
    return {url: key.get_secret_value() for url, key in found.keys().items()}


def test_every_endpoint_of_the_settings_uses_the_common_key() -> None:
    found = Settings.load(
        api_key=KEY, text_endpoints="https://t.example", multimodal_endpoints="https://m.example"
    )
    assert shown(found) == {"https://t.example": KEY, "https://m.example": KEY}


def test_an_endpoint_with_a_key_of_its_own_uses_that() -> None:
    found = Settings.load(
        api_key=KEY,
        text_endpoints="https://t.example",
        multimodal_endpoints="https://m.example",
        endpoint_keys=" https://t.example/=sk-one==, https://else.example/v=sk-two ,",
    )
    assert shown(found) == {
        "https://t.example": "sk-one==",
        "https://m.example": KEY,
        "https://else.example/v": "sk-two",
    }


def test_without_a_common_key_only_endpoints_with_their_own_have_one() -> None:
    assert shown(Settings.load()) == {}
    found = Settings.load(endpoint_keys="https://t.example=sk-one")
    assert shown(found) == {"https://t.example": "sk-one"}


@pytest.mark.parametrize(
    "entry",
    [
        "sk-do-not-show-me",
        "sk-do-not-show-me=https://t.example",
        "https://t.example",
        "https://t.example=",
        "t.example=sk-do-not-show-me",
        "https://=sk-do-not-show-me",
        "=sk-do-not-show-me",
        "https://t.example sk-do-not-show-me==",
        "https:///sk-do-not-show-me=x",
        "https://t.example:sk-do-not-show-me=x",
        "https://t.example=sk-one https://u.example=sk-do-not-show-me",
    ],
)
def test_a_fault_in_the_keys_says_where_and_never_what(entry: str) -> None:
    with pytest.raises(SettingsError) as error:
        Settings.load(endpoint_keys=f"https://good.example=sk-good,{entry}")
    (fault,) = error.value.faults
    assert fault.startswith("CHATQUEUE_ENDPOINT_KEYS: ")
    for secret in (KEY, "sk-good"):
        assert secret not in fault


def test_a_key_that_stands_in_a_url_is_never_quoted() -> None:
    for entry in (f"https://{KEY}@t.example=x", f"https://t.example/?key={KEY}=x"):
        with pytest.raises(SettingsError) as error:
            Settings.load(endpoint_keys=entry)
        assert KEY not in str(error.value)


def test_keys_of_endpoints_are_in_no_form_of_the_settings() -> None:
    found = Settings.load(endpoint_keys=f"https://t.example={KEY}", limits_url=BROKER)
    for text in (repr(found), str(found), found.model_dump_json(), str(found.keys())):
        assert KEY not in text
        assert "hidden-word" not in text


@pytest.mark.parametrize(
    ("broker", "limits", "expected"),
    [
        (None, None, None),
        ("redis://h/1", None, "redis://h/1"),
        ("rediss://h/1", None, "rediss://h/1"),
        ("valkey://h/1", None, "redis://h/1"),
        ("redis+socket:///x.sock?virtual_host=2", None, "redis+socket:///x.sock?virtual_host=2"),
        ("amqp://h", None, None),
        ("amqp://h", "redis://l", "redis://l"),
        ("redis://h/1", "valkey://l/2", "redis://l/2"),
        (None, "redis+socket:///y.sock", "redis+socket:///y.sock"),
    ],
)
def test_limits_are_shared_through_the_broker_if_it_can_or_through_what_is_named(
    broker: str | None, limits: str | None, expected: str | None
) -> None:
    assert Settings.load(broker_url=broker, limits_url=limits).shared_redis_url == expected


def test_limits_are_shared_through_redis_only() -> None:
    with pytest.raises(SettingsError) as error:
        Settings.load(limits_url="amqp://user:hidden-word@h")
    (fault,) = error.value.faults
    assert fault.startswith("CHATQUEUE_LIMITS_URL: 'amqp' is no Redis")
    assert "hidden-word" not in fault


def test_what_is_not_set_is_kept_from_a_child_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATQUEUE_LIMITS_URL", BROKER)
    monkeypatch.setenv("OTHER", "kept")
    child = Settings.load(limits_url=None).environment()
    assert "CHATQUEUE_LIMITS_URL" not in child
    assert child["OTHER"] == "kept"


def test_settings_apart_take_nothing_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("CHATQUEUE_MAX_ATTEMPTS=4\n")
    monkeypatch.setenv("CHATQUEUE_BROKER_URL", BROKER)
    found = Settings.apart(workers=3)
    assert (found.workers, found.max_attempts, found.broker_url) == (3, 6, None)
