"""Images, labels and masks in: readers, augmentation, batches, and the demo's generator."""
