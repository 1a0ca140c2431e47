"""Between an image in millimeters and a model's grid, and fields on grids of their own."""
