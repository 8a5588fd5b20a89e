"""Label maps that people have corrected, from the files of labelling tools; docs/formats.md shows them."""
