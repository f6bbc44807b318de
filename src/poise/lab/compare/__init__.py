"""Ways of training side by side on one prompt stream, run after run, and what may be concluded."""
