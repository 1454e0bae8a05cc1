"""The order of work: which stage follows which. Edges only; the work is in the stages."""
