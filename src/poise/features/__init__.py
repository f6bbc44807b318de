"""What one forward pass tells about a rollout: pooled hidden states, token entropies, scalars."""
