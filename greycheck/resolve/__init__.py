"""What senders' domains say in SPF, asked in DNS and kept in the store for all hosts.

``due`` says which domains are to be asked, ``work`` asks them, ``keeping`` writes what they say.
No check loads this: on the way of an envelope nobody asks DNS.
"""

# How many domains one run asks, and for how many seconds it goes on: one that is begun each minute
# is over before the next.
LIMIT, SECONDS = 2000, 50
