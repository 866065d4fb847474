"""`/openapi.json`: operations.py lists what there is, limits.py the ranges of values, document.py writes it down."""
