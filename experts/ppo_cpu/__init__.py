"""PPO for image observations on one processor core: the trainer of Atari experts where there is no GPU."""
