"""An index of what waits, by client network: how much of one network waits is asked for each new
triplet.

Programs of 0003 go on meanwhile, and afterwards: they do not ask.
"""

from greycheck.store.schema import migration_ops

revision = "0004_0003"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    migration_ops.make_index("triplet", "network", "passes", "expires_at", of="passes = 0")


def downgrade() -> None:
    migration_ops.drop_index("triplet", "network")
