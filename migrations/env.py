"""How alembic runs a migration here: on the connection that greycheck.store.schema.migrate hands
over, inside its transaction.
"""

from alembic import context
from sqlalchemy import Connection

from greycheck.store.schema.tables import metadata

connection: Connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, transactional_ddl=False)
context.run_migrations()
