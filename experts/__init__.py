"""Who acts: an expert policy per task, and the random policy every score is measured against."""
