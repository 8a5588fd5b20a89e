"""What networks are trained for, one file for each method."""
