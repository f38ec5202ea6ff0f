"""How fast safedb is beside its peers: `python3 -m benchmarks` compares them, and files for pytest-benchmark.

Whatever is compared is measured side by side in one run, and every row that was written is looked for afterwards.
Nothing here is asserted in a test: a ratio is reported, with the data of the machine it was taken on.
"""
