"""The queue of long trainings: what is asked for (``entries``), how far it is (``states``), who runs it (``run``)."""
