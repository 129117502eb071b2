"""The URL of a server database, against SQLAlchemy's own reading of it; and what errors mean."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import URL, make_url

from greycheck.store.drivers import arguments, faults
from greycheck.store.drivers.faults import Fault
from greycheck.store.url import Server, decoded, parse_url, with_hosts

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)


def hosts(found: Server) -> list[str]:
    return [str(host) for host in found.hosts]


@given(
    st.sampled_from(["postgresql", "postgresql+psycopg2", "mysql+pymysql", "mariadb"]),
    st.none() | WORDS,
    WORDS,
    st.none() | st.from_regex(r"[a-z0-9.-]{1,20}|[0-9a-f]{1,4}::[0-9a-f]{1,4}", fullmatch=True),
    st.none() | st.integers(1, 65535),
    st.dictionaries(st.sampled_from(["ssl_ca", "ssl_key", "read_default_file"]), WORDS, max_size=2),
)
def test_a_url_means_what_it_means_to_sqlalchemy(
    scheme: str,
    user: str | None,
    password: str,
    host: str | None,
    port: int | None,
    options: dict[str, str],
) -> None:
    made = URL.create(
        scheme, user, password if user else None, host, port if host else None, "greycheck", options
    )
    text = made.render_as_string(hide_password=False)
    again = make_url(text)
    found = parse_url(text)
    assert (found.user, found.password) == (again.username, again.password)
    assert found.database == again.database
    assert found.options == dict(again.query)
    assert [(one.name, one.port) for one in found.hosts] == [(again.host or "", again.port)]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mysql://u:p@db/g", ["db"]),
        ("mysql://u:p@db:3307/g", ["db:3307"]),
        ("mysql://u:p@[2001:db8::1]:3307/g", ["[2001:db8::1]:3307"]),
        ("mysql://u:p@/g", ["localhost"]),
        ("mysql:///g?host=a:1&host=b,c:3", ["a:1", "b", "c:3"]),
        ("mysql:///g?host=a,b,c&port=1,2,3", ["a:1", "b:2", "c:3"]),
        ("mysql:///g?host=a,b:9&port=5", ["a:5", "b:9"]),
        ("mysql://u@/g?unix_socket=/run/mysqld/mysqld.sock", ["/run/mysqld/mysqld.sock"]),
        ("postgresql://u@/g?host=/run/postgresql&port=5433", ["/run/postgresql:5433"]),
        ("postgresql://u@/g?host=[2001:db8::1]:5433", ["[2001:db8::1]:5433"]),
    ],
)
def test_hosts_are_tried_as_they_are_written(url: str, expected: list[str]) -> None:
    assert hosts(parse_url(url)) == expected


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("oracle://h/g", "oracle: no such database here"),
        ("mysql+asyncmy://h/g", "mysql\\+asyncmy: no such driver here: mysqldb or pymysql"),
        ("mysql://h", "which database"),
        ("mysql://h:x1/g", "x1: not a port"),
        ("mysql://h:99999/g", "99999: not a port"),
        ("mysql:///g?host=[::1/g", "not a host"),
        ("mysql:///g?host=a,b&port=1,2,3", "2 hosts and 3 ports"),
        ("mysql://h/g?sslca=/x", "sslca: no such option here: host, port"),
        ("mysql://h/g?ssl_mode=perhaps", "ssl_mode=PERHAPS: not one of DISABLED"),
    ],
)
def test_what_cannot_be_used_is_named(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_url(url)


@given(WORDS)
def test_a_password_that_was_not_encoded_is_not_shown(password: str) -> None:
    said = ""
    try:
        parse_url(f"mysql://user:§{password}§@host/db?ssl_mode=disabled")
    except ValueError as error:
        said = str(error)
    assert "§" not in said


@pytest.mark.parametrize(
    "password", ["a@§1", "§:2@3", "§/x@§?y=1", "@§", "§@h/d?§=2", "a@h/§", "p@§:§/x", "§@h:1/§"]
)
def test_nor_where_it_looks_like_something_else(password: str) -> None:
    with pytest.raises(ValueError, match=r"@|database|option|port") as error:
        parse_url(f"mysql://user:{password}@host/db")
    assert "§" not in str(error.value)


@given(st.lists(st.from_regex(r"[a-z]{1,5}(:[1-9][0-9]{0,3})?", fullmatch=True), min_size=1), WORDS)
def test_the_hosts_of_a_url_can_be_changed(names: list[str], password: str) -> None:
    made = URL.create(
        "mysql", "user", password, "old", 1, "greycheck", {"host": ("x", "y"), "ssl_ca": "/ca"}
    )
    url = with_hosts(made.render_as_string(hide_password=False), names)
    found = parse_url(url)
    assert hosts(found) == names
    assert (found.user, found.password, found.database) == ("user", password, "greycheck")
    assert found.options == {"ssl_ca": "/ca"}


@given(st.text("%0123456789abcdefgG é€\udc80", max_size=20))
def test_percent_signs_are_read_as_elsewhere(text: str) -> None:
    from urllib.parse import unquote

    if "\udc80" not in text:
        assert decoded(text) == unquote(text)


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ("", "PREFERRED"),
        ("?ssl_ca=/ca", "VERIFY_IDENTITY"),
        ("?ssl_capath=/cas", "VERIFY_IDENTITY"),
        ("?ssl_ca=/ca&ssl_check_hostname=false", "VERIFY_CA"),
        ("?ssl_ca=/ca&ssl_mode=required", "REQUIRED"),
        ("?ssl_mode=disabled", "DISABLED"),
    ],
)
def test_who_names_an_authority_wants_the_server_verified(options: str, mode: str) -> None:
    assert arguments.ssl_mode(parse_url("mysql://h/g" + options)) == mode


def test_libpq_is_told_what_it_understands() -> None:
    found = parse_url(
        "postgresql://us%27er:p%5C%27w@h:1/g?sslmode=verify-full&options=-c%20geqo%3Doff&gssencmode=prefer"
    )
    said = arguments.libpq_dsn(found, found.hosts[0], 1.5, 1)
    assert said == (
        "host='h' port='1' user='us\\'er' password='p\\\\\\'w' dbname='g' client_encoding='UTF8'"
        " connect_timeout='2'"
        " gssencmode='prefer' target_session_attrs='read-write' application_name='greycheck'"
        " options='-c enable_bitmapscan=off -c geqo=off"
        " -c statement_timeout=1500 -c lock_timeout=1000 -c"
        " idle_in_transaction_session_timeout=10000'"
        " sslmode='verify-full'"
    )


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (2003, faults.GONE),
        (1047, faults.UNUSABLE),
        (1040, faults.BUSY),
        (1290, faults.READ_ONLY),
        (1205, faults.LOCKED),
        (1213, faults.CONFLICT),
        (1064, faults.OTHER),
        (1041, faults.OTHER),
        (2008, faults.OTHER),
        ("no code", faults.OTHER),
    ],
)
def test_errors_of_mysql_have_their_kinds(code: object, kind: str) -> None:
    assert faults.mysql_fault(code, "so\nit is").kind == kind
    assert str(faults.mysql_fault(code, "so\nit is")).startswith("so it is")


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        (None, "Connection refused", faults.GONE),
        (None, "FATAL:  sorry, too many clients already", faults.BUSY),
        ("08006", "", faults.GONE),
        ("57P01", "", faults.GONE),
        ("57P03", "", faults.UNUSABLE),
        ("53300", "", faults.BUSY),
        ("25006", "", faults.READ_ONLY),
        ("55P03", "", faults.LOCKED),
        ("40001", "", faults.CONFLICT),
        ("42601", "", faults.OTHER),
    ],
)
def test_errors_of_postgresql_have_their_kinds(code: str | None, message: str, kind: str) -> None:
    assert faults.postgresql_fault(code, message).kind == kind


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (faults.mysql_fault(2008, "MySQL client ran out of memory"), faults.OURS),
        (faults.mysql_fault(2026, "TLS/SSL error: malloc failure"), faults.OURS),
        (
            faults.mysql_fault(2005, "Unknown server host 'db' (Memory allocation failure)"),
            faults.OURS,
        ),
        (faults.mysql_fault(1041, "Out of memory."), faults.OTHER),
        (
            faults.mysql_fault(
                2003, "Can't connect to MySQL server on 'x' ([Errno 11] Resource temporarily ...)"
            ),
            faults.BUSY,
        ),
        (faults.postgresql_fault(None, "out of memory"), faults.OURS),
        (
            faults.postgresql_fault(
                None, "FATAL:  could not fork new process: Cannot allocate memory"
            ),
            faults.GONE,
        ),
        (
            faults.postgresql_fault(
                None, "connection on socket failed: Resource temporarily unavailable"
            ),
            faults.BUSY,
        ),
    ],
)
def test_who_is_short_of_what(fault: Fault, kind: str) -> None:
    assert fault.kind == kind


@pytest.mark.parametrize(
    "fault", [faults.mysql_fault(1146, "Table"), faults.postgresql_fault("42P01", "relation")]
)
def test_a_missing_table_says_what_to_do(fault: Fault) -> None:
    assert str(fault) == "the database has no schema: run greycheck db upgrade"
