"""Usage: what the ledger adds up to by any dimension, for the pages, the admin API and the command alike."""
