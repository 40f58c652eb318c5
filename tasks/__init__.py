"""What is to be solved: tasks, templates, sources, metrics, and the built-in world."""
