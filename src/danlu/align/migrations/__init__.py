"""What was done to the preference store's tables, one step a module, in order; Alembic runs what a database lacks.

In:  a database of any age.
Out: the tables of ``preferences``, with everything that was in them.
Left out: steps back: an older danlu is told that the database is too new for it.
"""
