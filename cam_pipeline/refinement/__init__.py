"""From class activation maps to scores and labels."""
