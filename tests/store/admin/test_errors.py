"""What errors of databases mean, and transactions that begin again."""

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from greycheck.store.admin import errors
from greycheck.store.admin.engine import open_engine
from greycheck.store.drivers import faults
from greycheck.store.drivers.faults import Fault
from tests.support import OTHER_DRIVERS, Database, on_every_server, with_every_driver


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    engine = open_engine(database.url)
    yield engine
    engine.dispose()


def error_of(call: Callable[[], object]) -> DBAPIError:
    with pytest.raises(DBAPIError) as raised:
        call()
    return raised.value


def run(engine: Engine, *statements: str) -> None:
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))


@with_every_driver
def test_an_error_is_one_line(engine: Engine) -> None:
    said = str(
        errors.of(error_of(lambda: run(engine, "SELECT 1 FROM\n client WHERE nonsense\n = 1")))
    )
    assert "nonsense" in said
    assert "\n" not in said


@on_every_server
def test_a_missing_table_is_named_as_a_missing_schema(engine: Engine) -> None:
    error = error_of(lambda: run(engine, "SELECT 1 FROM nonsense"))
    assert str(errors.of(error)) == "the database has no schema: run greycheck db upgrade"


@pytest.mark.parametrize("database", ["postgresql", OTHER_DRIVERS[0]], indirect=True)
def test_a_conflict_of_postgresql_is_one(engine: Engine) -> None:
    """Of two transactions that each count what the other adds to, one has to go."""
    serializable = engine.execution_options(isolation_level="SERIALIZABLE")
    add = text("INSERT INTO client SELECT :address, count(*), 1, 1, 1, 0, 0 FROM client")

    def both() -> None:
        with serializable.begin() as one:
            one.execute(add, {"address": "one"})
            with serializable.begin() as other:
                other.execute(add, {"address": "other"})

    assert errors.is_conflict(error_of(both))


@on_every_server
def test_a_lost_connection_is_no_conflict(engine: Engine) -> None:
    gone = (
        "KILL CONNECTION_ID()"
        if engine.dialect.name == "mysql"
        else "SELECT pg_terminate_backend(pg_backend_pid())"
    )
    error = error_of(lambda: run(engine, gone, "SELECT 1"))
    fault = errors.of(error)
    assert isinstance(fault, Fault)
    assert fault.kind in (faults.GONE, faults.LOCKED)
    assert not errors.is_conflict(error)


# --- once more ------------------------------------------------------------------------------------


class Losing:
    """Raises ERROR so many TIMES before it returns how often it was called."""

    def __init__(self, error: DBAPIError, times: int) -> None:
        self.error = error
        self.times = times
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return self.calls


DEADLOCK = OperationalError("", {}, Exception(1213, "Deadlock found"))
DUPLICATE = IntegrityError("", {}, Exception(1062, "Duplicate entry"))


@pytest.mark.parametrize("error", [DEADLOCK, DUPLICATE])
def test_who_lost_a_race_begins_again_after_a_rest(error: DBAPIError) -> None:
    rests: list[float] = []
    assert errors.retry_on_conflict(Losing(error, errors.TRIES - 1), rests.append) == errors.TRIES
    assert len(rests) == errors.TRIES - 1
    assert all(0 <= rest <= errors.PAUSE * lost for lost, rest in enumerate(rests, 1))


@pytest.mark.parametrize("error", [DEADLOCK, DUPLICATE])
def test_who_loses_again_and_again_gives_up(error: DBAPIError) -> None:
    with pytest.raises(type(error)):
        errors.retry_on_conflict(Losing(error, errors.TRIES), lambda _seconds: None)


def test_another_fault_is_no_reason_to_begin_again() -> None:
    losing = Losing(OperationalError("", {}, Exception(1114, "The table is full")), 1)
    with pytest.raises(OperationalError):
        errors.retry_on_conflict(losing, lambda _seconds: None)
    assert losing.calls == 1


def test_sqlite_has_no_conflicts() -> None:
    engine = create_engine("sqlite://")
    error = error_of(lambda: run(engine, "nonsense"))
    assert not errors.is_conflict(error)
    assert str(errors.of(error)) == 'near "nonsense": syntax error'
    engine.dispose()
