"""Reads the logs of mail servers and of greycheck: who wrote to whom, and what checks decided.

``lines`` takes from a line what its logger put before it, with the time; ``mails`` puts together
what the lines of one mail say, for each mail server (``greycheck learn``); ``checks`` reads
greycheck's own lines back (``greycheck watch`` and ``simulate``). Nothing here opens a file or a
store, and nothing that a line says can make it fail.
"""
