"""The schema: tables and statements, the SQL compiled from them for the child, and migrations."""
