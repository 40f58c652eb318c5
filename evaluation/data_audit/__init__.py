"""What is in data: who is mentioned, what stands twice, what leaked, what is personal."""
