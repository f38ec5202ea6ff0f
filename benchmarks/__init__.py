"""How fast safedb is beside plain `sqlite3`: `python -m benchmarks.budget`, and files for pytest-benchmark.

Whatever is compared is measured side by side in one run, and every row that was written is counted afterwards. Nothing
here is asserted in a test: a ratio is reported, with the data of the machine it was taken on.
"""
