"""The store of triplets and clients.

``tables`` and ``statements`` say in SQLAlchemy Core what there is and what is asked; ``compiled_*`` is the same ahead of time, for the
forked child, who reaches it through ``lean``. Everybody else uses ``engine``.
"""
