"""A small SMTP server that calls the checker as qmail-smtpd does, for the demonstration and the tests."""
