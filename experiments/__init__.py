"""What is run: configs, sweeps, the command line."""
