"""The page of a run, and the pictures on it."""
