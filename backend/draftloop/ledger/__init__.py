"""The door to the state that outlives a process and is shared by workers.

sqlite.py      the ledger: all stores below over one SQLite file
database.py    connections, transactions, owners         migrations.py  the tables, version by version
setups.py      what `/setup` and webhooks showed         promotions.py  which adapter drafts for a project
drafts.py      versions, drafts and their reasons        claims.py      who drafts which task
jobs.py        training jobs
"""
