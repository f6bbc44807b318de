"""Which model comes with the package?"""
