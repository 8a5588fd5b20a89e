"""From settings and stored files to networks."""
