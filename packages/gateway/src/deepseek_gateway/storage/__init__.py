"""What is kept, and where: one SQL text for SQLite and PostgreSQL, one class of tables a subject."""
