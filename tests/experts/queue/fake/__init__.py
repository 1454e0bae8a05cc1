"""A trainer of milliseconds a step that keeps a ledger, so that a test can tell what was done, lost or doubled."""
