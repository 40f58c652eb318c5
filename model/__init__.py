"""What the network is, and everything about its parameters."""
