"""Numbers: how well results agree with masks."""
