"""Input of images, labels and masks: readers, augmentation, batches, and the demo's generator."""
