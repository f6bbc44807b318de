"""Files that are whole or absent, their digests, and the folder of a run."""
