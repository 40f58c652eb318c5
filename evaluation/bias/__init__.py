"""Bias probes, each a list of `BiasRow`: a value, its interval, the items behind it, the value without bias."""
