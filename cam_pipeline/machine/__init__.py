"""Files, signals, processes and devices: what the computer is, whatever is computed."""
