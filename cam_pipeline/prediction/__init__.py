"""Label maps of images from a trained segmenter."""
