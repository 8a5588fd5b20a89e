"""What is wrong with a data set, what is in it, and what a run on it costs."""
