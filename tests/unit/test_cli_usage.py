"""What `chatqueue usage` prints; the sums themselves are tested on every database."""

import csv
import io
import json
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner, Result

from tests.contract.acts import claim, enlist, outcome_of, put, submit_batch
from worker.cli import build
from worker.settings import Settings, settings
from worker.store import schema
from worker.store.engine import Database
from worker.store.usage import By


def usage(*words: str) -> Result:
    return CliRunner().invoke(build(), ["usage", *words], prog_name="chatqueue")


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """The database of the environment, with one answer of 11 tokens in (3 cached) and 7 out."""
    monkeypatch.setenv("CHATQUEUE_PRICES", "gpt-5.1=100000/10000/1000000")
    settings.cache_clear()
    Settings.load().home.mkdir(parents=True, exist_ok=True)
    with Database(Settings.load().sqlalchemy_url) as database:
        schema.migrate(database)
        batch_id = submit_batch(database, 2)
        answered, _ = claim(database, enlist(database), **{batch_id: 2})
        put(database, outcome_of(answered))
        yield database
    settings.cache_clear()


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("by", By)
def test_csv_has_a_line_for_each_key_and_a_column_for_each_number(by: By) -> None:
    (line,) = csv.DictReader(io.StringIO(usage("--by", by, "--csv").stdout))
    assert line[by]
    assert (line["calls"], line["answered"], line["retries"]) == ("2", "1", "0")
    assert (line["cost"], line["cost_in_vain"]) == ("7.83", "0")


@pytest.mark.usefixtures("database")
def test_json_has_the_same() -> None:
    (line,) = json.loads(usage("--by", "model", "--json").stdout)
    assert (line["key"], line["prompt_tokens"], line["cost"]) == ("gpt-5.1", 11, "7.83")


@pytest.mark.usefixtures("database")
def test_the_table_names_its_prices_and_what_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    priced = usage("--by", "model")
    assert "7.8300" in priced.stdout
    assert "gpt-5.1=100000/10000/1000000" in priced.stderr
    monkeypatch.setenv("CHATQUEUE_PRICES", "another=1/1/1")
    settings.cache_clear()
    unpriced = usage("--by", "model")
    assert "?" in unpriced.stdout
    assert "CHATQUEUE_PRICES" in unpriced.stderr


@pytest.mark.usefixtures("database")
def test_days_bound_what_is_told() -> None:
    assert json.loads(usage("--until", "2020-01-01", "--json").stdout) == []
    assert len(json.loads(usage("--since", "2020-01-01", "--json").stdout)) == 1


def test_csv_and_json_exclude_each_other() -> None:
    done = usage("--csv", "--json")
    assert done.exit_code == 2
    assert "exclude each other" in done.output
