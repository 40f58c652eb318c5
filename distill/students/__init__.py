"""Who the student is: its shape, and the parameters that it starts from."""
