"""Read and write files: images, labels, fields and datasets; refuse what is damaged."""
