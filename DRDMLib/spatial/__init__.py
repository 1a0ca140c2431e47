"""Images and displacement fields in physical space, and the grid that a model works on."""
