"""`/openapi.json`: operation.py says what an operation is, operations.py lists them, document.py writes them down."""
