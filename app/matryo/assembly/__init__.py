"""From settings to a service that is ready to enter; no door is chosen here."""
