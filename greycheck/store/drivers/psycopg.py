"""psycopg 3: libpq as ``psycopg.pq`` has it, with all waiting done here (see ``psycopg2``)."""

import select
from time import monotonic

import psycopg
from psycopg import pq

from greycheck.store.drivers import arguments, faults
from greycheck.store.drivers.faults import GONE, Fault
from greycheck.store.url import Host, Server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg.pq.abc import PGconn, PGresult
    from sqlalchemy.engine.interfaces import DBAPIConnection

Error = psycopg.Error

# Types of PostgreSQL, by their number: bytea, and the whole numbers bigint, smallint and integer.
BYTEA = 17
INTEGERS = (20, 21, 23)


class Connection:
    """A connection of the child."""

    def __init__(self, server: Server, host: Host, seconds: float, patience: int) -> None:
        self._seconds = seconds
        self._until = monotonic() + seconds
        dsn = arguments.libpq_dsn(server, host, seconds, patience)
        self._connection: PGconn = pq.PGconn.connect_start(dsn.encode())
        state = pq.PollingStatus.WRITING
        while state != pq.PollingStatus.OK:
            if self._connection.status == pq.ConnStatus.BAD:
                raise faults.postgresql_fault(None, self._said())
            self._wait(select.POLLIN if state == pq.PollingStatus.READING else select.POLLOUT)
            state = pq.PollingStatus(self._connection.connect_poll())

    def run(
        self, sql: str, values: "Sequence[object]", seconds: float
    ) -> "tuple[Sequence[Sequence[object]], int]":
        """The rows, or how many rows were changed."""
        self._seconds = seconds
        self._until = monotonic() + seconds
        try:
            result = self._answer(sql, values)
        except psycopg.Error as error:
            raise Fault(GONE, faults.one_line(str(error))) from None
        if result.status == pq.ExecStatus.TUPLES_OK:
            return [self._row(result, number) for number in range(result.ntuples)], result.ntuples
        if result.status == pq.ExecStatus.COMMAND_OK:
            return (), result.command_tuples or 0
        code = result.error_field(pq.DiagnosticField.SQLSTATE)
        message = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or self._said().encode()
        raise faults.postgresql_fault(
            code.decode() if code else None, message.decode("utf-8", "replace")
        )

    def _answer(self, sql: str, values: "Sequence[object]") -> "PGresult":
        head, *parts = sql.split("%s")
        text = head + "".join(f"${number}{part}" for number, part in enumerate(parts, 1))
        given = [
            value if isinstance(value, bytes) else None if value is None else str(value).encode()
            for value in values
        ]
        binary = [isinstance(value, bytes) for value in values]
        self._connection.nonblocking = 1
        self._connection.send_query_params(
            text.replace("%%", "%").encode(),
            given,
            [BYTEA if is_bytes else 0 for is_bytes in binary],
            [pq.Format.BINARY if is_bytes else pq.Format.TEXT for is_bytes in binary],
        )
        while self._connection.flush():
            self._wait(select.POLLIN | select.POLLOUT)
            self._connection.consume_input()
        answered: list[PGresult] = []
        while True:
            while self._connection.is_busy():
                self._wait(select.POLLIN)
                self._connection.consume_input()
            result = self._connection.get_result()
            if result is None:
                return answered[-1]
            answered.append(result)

    def _row(self, result: "PGresult", number: int) -> tuple[object, ...]:
        return tuple(
            _value(result.get_value(number, column), result.ftype(column))
            for column in range(result.nfields)
        )

    def _wait(self, events: int) -> None:
        poller = select.poll()
        poller.register(self._connection.socket, events)
        left = self._until - monotonic()
        if left <= 0 or not poller.poll(left * 1000):
            raise faults.silent(self._seconds)

    def _said(self) -> str:
        return faults.one_line(self._connection.error_message.decode("utf-8", "replace"))

    def close(self) -> None:
        """Leaves the server."""
        self._connection.finish()


def _value(raw: bytes | None, kind: int) -> object:
    if raw is None:
        return None
    if kind in INTEGERS:
        return int(raw)
    return bytes.fromhex(raw[2:].decode()) if kind == BYTEA else raw.decode()


def connect(server: Server, host: Host, seconds: float) -> "DBAPIConnection":
    """A connection for SQLAlchemy."""
    found: DBAPIConnection = psycopg.connect(arguments.libpq_dsn(server, host, seconds))  # type: ignore[assignment]
    return found
