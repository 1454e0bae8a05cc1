"""The queue of long trainings: its entries (``entries``), their states (``states``) and its runner (``run``)."""
