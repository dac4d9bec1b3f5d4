"""Which way of running a model is the fastest on this machine: timed runs, each in a process of its own."""
