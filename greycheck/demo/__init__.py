"""A small SMTP server that runs the checker as qmail-smtpd does, for demonstrations and tests."""
