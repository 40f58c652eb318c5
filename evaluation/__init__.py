"""What came out: comparison, bias, energy, report."""
