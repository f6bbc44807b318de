"""What does a run look like?"""
