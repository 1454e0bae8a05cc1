"""Who acts besides an expert alone: agents, experts with noise, and experts that label what others do."""
