"""What every request used: a journal on local disk first, then rows in the store."""
