"""PPO for image observations on one CPU core: the trainer of Atari experts on machines without a GPU."""
