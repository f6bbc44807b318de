"""The baselines of arXiv:2605.07579 and of its authors' release, as they are."""
