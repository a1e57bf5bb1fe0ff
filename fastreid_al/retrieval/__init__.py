"""Search in a gallery: files of features, the nearest images, and how sure a match is."""
