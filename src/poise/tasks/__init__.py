"""Problems that a policy is trained and measured on, and how answers are graded.

A task source yields problems with a prompt, a domain name and an answer that a function can check.
"""
