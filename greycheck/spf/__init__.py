"""What a sender's domain says in SPF (RFC 7208) about which networks send for it.

Interface: ``evaluate.networks_of`` for all clients, ``evaluate.passes`` for one; both ask DNS
through ``dns.Resolver``. No check loads this: ``greycheck.spf.ranges`` alone would cost little.

``ranges`` are sets of addresses, ``macros`` and ``record`` the language, ``dns`` the questions.
"""
