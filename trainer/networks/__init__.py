"""Networks: JAT's and our own, behind one interface, and how they are loaded and kept."""
