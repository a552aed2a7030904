"""What was done to the server's tables, one step a module, in order; Alembic runs what a database lacks.

In:  a database of any age; the preference store's tables are beside and have a history of their own.
Out: the tables of ``tables``, with everything that was in them.
Left out: steps back: an older danlu is told that the database is too new for it.
"""
