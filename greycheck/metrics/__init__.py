"""Numbers for Prometheus: of the store, for ``greycheck metrics``; of a resident, over HTTP.

``counted`` reads the store, ``exposition`` names what was read, in Prometheus' text format;
a resident counts in ``numbers``; ``resident`` names what is there, ``listener`` answers it over
HTTP. ``exposition``, ``resident`` and ``listener`` need the library prometheus_client
(``greycheck[metrics]``). Nothing here imports the resident, which imports these.

Diagnostics: ModuleNotFoundError, by importing one of these three, where the library is not there.
"""
