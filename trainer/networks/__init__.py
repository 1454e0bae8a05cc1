"""Networks: JAT's and this project's own behind one interface, with loading and saving of weights."""
