"""What other settings would have made of the mail that a log tells of, for ``greycheck simulate``.

``history`` reads attempts from logs and puts those of one mail together; ``store`` is a store in
memory; ``replay`` makes the decision on each attempt; ``schedules`` says when a sender would have
tried again where the log cannot know; ``figures`` are what comes of it: plain values.
"""
