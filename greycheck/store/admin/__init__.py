"""The queries of operators' commands, with SQLAlchemy."""
