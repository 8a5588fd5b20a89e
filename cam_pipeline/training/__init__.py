"""The training loop, its optimiser, and what is learned."""
