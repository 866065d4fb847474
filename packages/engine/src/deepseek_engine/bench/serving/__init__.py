"""`deepseek-bench serving`: load on any OpenAI-compatible server, measured from outside.

Read in this order: load.py (when requests are due), http_client.py (one request and its times), record.py (what is kept
of it), summary.py (what follows from all of them), report.py and plot.py (how that is shown), run.py (the order).
"""
