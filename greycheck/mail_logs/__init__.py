"""Reads who wrote to whom from the logs of mail servers, for ``greycheck learn``.

``lines`` takes from a line what its logger put before it, with the time; ``mails`` puts together
what the lines of one mail say, for each mail server. Nothing here opens a file or a store, and
nothing that a line says can make it fail.
"""
