"""What else computes a DeepEncoder, and the comparison with it: `python benchmarks/speed.py --peers`."""
