"""poise's own baseline, in reading order: evidence, principal_axes, leave_one_out, mixture, learned."""
