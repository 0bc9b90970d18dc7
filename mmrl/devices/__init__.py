"""Device meshes, array shardings, multi-process runs, and the data of accelerator chips."""
