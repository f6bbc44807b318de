"""What `poise-verl` runs with: hydra finds `poise_ppo.yaml` in this package."""
