"""Loading trained networks: ours and the released JAT's."""
