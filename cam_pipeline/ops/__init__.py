"""Pure tensor mathematics, one file per method: tensors and numbers in, tensors out."""
