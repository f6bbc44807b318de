"""Which problems is a policy trained and measured on?

A task source yields problems with a prompt, a domain name and an answer that a function can check.
"""
