"""The admin API: each operation is a service call between a checked request and an answer."""
