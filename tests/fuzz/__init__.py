"""A seeded fuzz run over everything that reads what others wrote: `python -m tests.fuzz --seed 0 --cases 10000`.

`trials` holds the rules that every case must keep, `mutations` and `materials` make the inputs, each area is a module
of its own, `areas` is the table of them, and `program` runs the cases in worker processes and reports.
"""
