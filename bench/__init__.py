"""What Fairlead can carry: throughput, latency and growth, each beside its floor measured in the same run.

`make bench` runs everything; `bench/RESULTS.md` keeps the last run worth keeping, with the machine described.
"""
