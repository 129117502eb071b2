"""Answers requests: one log line and one answer each, and ``on_error`` where something fails.

An unexpected error costs the request that it came up with, or that client's connection, and is
logged with its place in the program. It never ends the resident.
"""

from contextlib import suppress
from pathlib import Path
from traceback import extract_tb

from greycheck.metrics.numbers import Numbers
from greycheck.policy import Verdict
from greycheck.resident.connections import Connections
from greycheck.resident.counting import Counting
from greycheck.resident.journal import Journal
from greycheck.resident.peers import Peer
from greycheck.resident.questions import Question, Writer


class Answers:
    """Sends answers by CONNECTIONS as WRITER writes them, logs them to JOURNAL, and counts."""

    def __init__(self, writer: Writer, connections: Connections, journal: Journal) -> None:
        self._writer = writer
        self._connections = connections
        self._journal = journal
        self.counting = Counting()
        self.numbers = Numbers()

    def answer(self, question: Question, verdict: Verdict | None, notes: list[str]) -> None:
        """Logs VERDICT on QUESTION and NOTES about the store, and sends the answer.

        Does nothing if QUESTION is answered already. A verdict of None means that the client has
        gone: it is logged so. Raises nothing: an error closes this client's connection.
        """
        if question.answered:
            return
        question.answered = True
        peer = question.peer
        try:
            if verdict is None:
                self._journal.warn(
                    f"{peer.where}: nobody waits for the answer any more: not decided"
                )
                self.numbers.abandoned += 1
                self._connections.drop(peer)
                return
            self.numbers.add(verdict)
            lines = self._writer.lines(question, verdict, notes)
            self._journal.add(lines)
            peer.question = None
            if not peer.is_closed:
                peer.ends = question.hook is not None
                self._connections.send(peer, self._writer.answer(question, verdict, lines))
        except Exception as error:
            self.complain(error)
            self._connections.drop(peer)
            return
        try:
            self.counting.add(question.settings, question.envelope, verdict, question.decision.now)
        except Exception as error:
            self.complain(error)

    def fail(self, question: Question, fault: str) -> None:
        """Answers QUESTION by ``on_error`` because of FAULT."""
        self.answer(question, question.failed(fault), [])

    def close_faulty(self, peer: Peer | None, error: Exception) -> None:
        """Logs ERROR; answers PEER, if it came up with one, by ``on_error`` and closes it."""
        self.complain(error)
        if peer is not None:
            self.fail_pending(peer, error)
            self._connections.drop(peer)

    def fail_pending(self, peer: Peer, error: Exception) -> None:
        """Answers the request of PEER that waits, if one does, by ``on_error`` because of ERROR.

        If that fails too, or answering is what failed, the connection is closed.
        """
        question = peer.question
        if not isinstance(question, Question):
            return
        try:
            if question.answered:
                self._connections.drop(peer)
            else:
                self.fail(question, f"{type(error).__name__}: {error}")
        except Exception:
            self._connections.drop(peer)

    def complain(self, error: Exception) -> None:
        """Logs ERROR, and where in the program it was raised."""
        self.numbers.unforeseen += 1
        with suppress(Exception):
            place = extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            self._journal.warn(f"unforeseen: {type(error).__name__}: {error} ({where})")
