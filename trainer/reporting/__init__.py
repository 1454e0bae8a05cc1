"""The parts of the report's page and of a network's card."""
