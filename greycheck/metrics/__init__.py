"""Numbers for Prometheus: of the store, for ``greycheck metrics``; of a resident, over HTTP.

``counted`` reads the store, ``exposition`` names what was read, in Prometheus' text format;
``resident`` does that for what a resident counts in memory, ``listener`` answers it over HTTP. The
last three need the library prometheus_client (``greycheck[metrics]``).

Diagnostics: ModuleNotFoundError, by importing one of these, where the library is not there.
"""
