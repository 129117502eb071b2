"""IPv6 clients, and IPv4 clients on an IPv6 socket: the other build of tcpserver."""

from tests.smtp.conftest import Hook
from tests.smtp.dialogue import ACCEPTED, mail
from tests.smtp.mailhost import IPV6_BUILD, MailHost
from tests.support import both_ways, on_every_database

pytestmark = both_ways


@on_every_database
def test_an_ipv6_client_is_greylisted_by_its_network(mx: MailHost, hook: Hook) -> None:
    server = mx.start(build=IPV6_BUILD, host="::1", **hook.variables)
    server.play(mail(hook.deferred))
    mx.age(300)
    server.play(mail(ACCEPTED))
    assert mx.reasons() == ["new", "retry"]
    assert all(" client=2001:db8::1 " in line for line in mx.checks())
    assert mx.rows("SELECT network FROM triplet") == [("2001:db8::/64",)]
    assert mx.rows("SELECT address FROM client") == [("2001:db8::1",)]


def test_an_ipv4_client_on_an_ipv6_socket_is_an_ipv4_client(mx: MailHost, hook: Hook) -> None:
    server = mx.start(build=IPV6_BUILD, listen="0", **hook.variables)
    server.play(mail(hook.deferred))
    assert " client=192.0.2.1 " in mx.check()
    assert mx.rows("SELECT network FROM triplet") == [("192.0.2.0/24",)]


@on_every_database
def test_a_retry_may_come_through_the_other_build(mx: MailHost, hook: Hook) -> None:
    both = mx.start(build=IPV6_BUILD, listen="0", **hook.variables)
    ipv4 = mx.start(**hook.variables)
    both.play(mail(hook.deferred))
    mx.age(300)
    ipv4.play(mail(ACCEPTED))
    assert mx.reasons() == ["new", "retry"]
    assert mx.count("triplet") == 1


def test_the_ipv6_prefix_is_a_setting(mx: MailHost, hook: Hook) -> None:
    server = mx.start(build=IPV6_BUILD, host="::1", GREYCHECK_IPV6_PREFIX="128", **hook.variables)
    server.play(mail(hook.deferred))
    assert mx.rows("SELECT network FROM triplet") == [("2001:db8::1/128",)]
