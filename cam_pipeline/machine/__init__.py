"""Files, signals, processes and devices, whatever is computed."""
